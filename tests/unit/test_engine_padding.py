"""How one-token requests are grouped into rectangles of KV."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.engine.attention.padding import MAX_STRETCH, SMALL_PAD_TOKENS, group_decodes, group_ends

BLOCK = 4
lengths_strategy = st.lists(st.integers(1, 900), min_size=1, max_size=12).map(sorted)
windows = st.one_of(st.none(), st.integers(1, 300))


@given(lengths_strategy, windows)
def test_every_seen_position_is_gathered_once_and_nothing_else_is_unmasked(
    lengths: list[int], window: int | None
) -> None:
    """Each row's unmasked positions are exactly its window, each in the block that its table names."""
    tables = [list(range(1000 * row, 1000 * row + 300)) for row in range(len(lengths))]
    groups = group_decodes(np.array(lengths), tables, BLOCK, window)
    seen_rows: list[int] = []
    for group in groups:
        for row in range(group.first, group.last):
            seen_rows.append(row)
            places = np.flatnonzero(~group.masked[row - group.first])
            slots = [(int(group.blocks[row - group.first, place // BLOCK]), int(place % BLOCK)) for place in places]
            begin = max(0, lengths[row] - window) if window else 0
            assert slots == [(tables[row][p // BLOCK], p % BLOCK) for p in range(begin, lengths[row])]
    assert seen_rows == list(range(len(lengths)))


@given(lengths_strategy, windows)
def test_unwritten_positions_are_stale_and_seen_ones_are_not(lengths: list[int], window: int | None) -> None:
    """Every place behind the row's last token in its block is called stale, and no place that is seen."""
    tables = [list(range(1000 * row, 1000 * row + 300)) for row in range(len(lengths))]
    for group in group_decodes(np.array(lengths), tables, BLOCK, window):
        for row in range(group.first, group.last):
            for place in range(group.stale.shape[1]):
                block = int(group.blocks[row - group.first, place // BLOCK]) - 1000 * row
                is_written = block * BLOCK + place % BLOCK < lengths[row]
                if group.stale[row - group.first, place]:
                    assert group.masked[row - group.first, place]
                else:
                    assert is_written


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_groups_cover_all_rows_and_bound_padding(sizes: list[int]) -> None:
    """Groups are a partition in order, and no row is padded beyond the bound."""
    ends = group_ends(np.array(sizes, dtype=np.int64))
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(sizes)
    first = 0
    for last in ends:
        part = sizes[first:last]
        assert max(part) <= max(min(part) * MAX_STRETCH, min(part) + SMALL_PAD_TOKENS)
        first = last


def test_similar_lengths_share_a_group() -> None:
    """A batch of similar lengths is one rectangle: one gather and one matmul per layer."""
    assert group_ends(np.array([160, 176, 176, 192, 240])) == [5]
    assert group_ends(np.array([16, 16, 2000, 2000])) == [2, 4]
