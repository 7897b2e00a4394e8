"""Which batch sizes decode steps are padded to, and that padding touches nobody's KV."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.decode_buckets import LARGEST, RowShape, bucket_sizes, choose_bucket, pad_rows

SIZES = st.integers(1, 3 * LARGEST)


@given(SIZES)
def test_buckets_hold_every_count_up_to_the_most(most: int) -> None:
    """Ascending, without doubles, none above what is asked for; padding is at most 7 rows."""
    sizes = bucket_sizes(most)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == min(most, LARGEST)
    for count in range(1, sizes[-1] + 1):
        size = choose_bucket(sizes, count)
        assert size is not None
        assert count <= size <= count + 7


@given(st.lists(SIZES, min_size=1, unique=True).map(sorted), SIZES)
def test_the_smallest_bucket_that_fits_is_chosen(sizes: list[int], count: int) -> None:
    """And none where the count is above them all."""
    assert choose_bucket(sizes, count) == min((size for size in sizes if size >= count), default=None)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int, RowShape]:
    """Lengths, block tables, rows, and the shape; the block tables do not overlap."""
    shape = RowShape(draw(st.integers(1, 32)), draw(st.integers(1, 6)), spare_block=1000)
    lengths = draw(st.lists(st.integers(1, shape.block_size * shape.width), min_size=1, max_size=9))
    ids = draw(st.permutations(range(9 * 6)))
    tables = [[ids.pop() for _ in range(-(-length // shape.block_size))] for length in lengths]
    return lengths, tables, len(lengths) + draw(st.integers(0, 9)), shape


@given(requests())
def test_requests_keep_their_places_and_padding_has_its_own(
    case: tuple[list[int], list[list[int]], int, RowShape],
) -> None:
    """Each request's token goes to its last position; padding is one token in the spare block, which no request has."""
    lengths, tables, size, shape = case
    rows = pad_rows(lengths, tables, size, shape)
    padding = size - len(lengths)
    assert rows.lengths.tolist() == lengths + [1] * padding
    assert rows.positions.tolist() == [length - 1 for length in lengths] + [0] * padding
    for row, (length, table) in enumerate(zip(lengths, tables, strict=True)):
        block, offset = divmod(length - 1, shape.block_size)
        assert rows.slots[row] == table[block] * shape.block_size + offset
        assert rows.tables[row].tolist() == table + [shape.spare_block] * (shape.width - len(table))
    assert set(rows.slots[len(lengths) :].tolist()) <= {shape.spare_block * shape.block_size}
    assert set(rows.tables[len(lengths) :].flatten().tolist()) <= {shape.spare_block}


def test_what_does_not_fit_is_refused() -> None:
    """More requests than rows, or a longer request than the width, are a bug of the caller."""
    shape = RowShape(block_size=4, width=2, spare_block=9)
    with pytest.raises(ValueError, match="do not fit 1 rows"):
        pad_rows([1, 1], [[0], [1]], 1, shape)
    with pytest.raises(ValueError, match="do not fit 2 rows"):
        pad_rows([9], [[0, 1, 2]], 2, shape)
