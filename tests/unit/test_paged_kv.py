"""Token ranges in and out of paged KV."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.engine.float_bits import convert_floats, round_to_bfloat16, widen_bfloat16
from services.engine.paged_kv import PagedKv, as_array

LAYERS, HEADS, DIM = 2, 3, 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_kv(block_size: int = 4, num_blocks: int = 11, dtype: torch.dtype = torch.float32) -> PagedKv:
    rng = torch.Generator().manual_seed(block_size)
    return PagedKv(torch.randn(LAYERS, 2, HEADS, num_blocks, block_size, DIM, generator=rng).to(dtype))


def tokens(count: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, 2, HEADS, count, DIM, generator=rng).to(dtype)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, list[int], int, int]:
    """A block size, a block table in any order, and a range inside it."""
    block_size = draw(st.sampled_from([1, 3, 4, 16]))
    blocks = draw(st.lists(st.integers(0, 10), min_size=1, max_size=8, unique=True))
    end = draw(st.integers(1, len(blocks) * block_size))
    return block_size, blocks, draw(st.integers(0, end - 1)), end


@given(ranges(), st.sampled_from(DTYPES))
def test_read_gives_every_position_of_the_range(case: tuple[int, list[int], int, int], dtype: torch.dtype) -> None:
    """Position p comes from its block at its offset, for whole blocks and for parts."""
    block_size, blocks, start, end = case
    kv = make_kv(block_size, dtype=dtype)
    out = torch.empty(LAYERS, 2, HEADS, end - start, DIM, dtype=dtype)
    kv.read(blocks, start, end, out)
    for position in range(start, end):
        wanted = kv.tensor[:, :, :, blocks[position // block_size], position % block_size]
        assert torch.equal(out[:, :, :, position - start], wanted)


@given(ranges(), st.sampled_from(DTYPES))
def test_write_stores_the_range_and_touches_nothing_else(
    case: tuple[int, list[int], int, int], dtype: torch.dtype
) -> None:
    """What was written reads back the same, and all other KV is as before."""
    block_size, blocks, start, end = case
    kv = make_kv(block_size, dtype=dtype)
    wanted, data = kv.tensor.clone(), tokens(end - start, dtype)
    for position in range(start, end):
        wanted[:, :, :, blocks[position // block_size], position % block_size] = data[:, :, :, position - start]
    kv.write(blocks, start, end, data)
    assert torch.equal(kv.tensor, wanted)


@given(ranges(), st.sampled_from(DTYPES))
def test_heads_in_tensors_of_ranks_read_and_write_as_one(
    case: tuple[int, list[int], int, int], dtype: torch.dtype
) -> None:
    """Three ranks with a head each give and take what one tensor with all heads does, and copy blocks as it does."""
    block_size, blocks, start, end = case
    one = make_kv(block_size, dtype=dtype)
    parts = [one.tensor[:, :, head : head + 1].clone() for head in range(HEADS)]
    three, data = PagedKv(*parts), tokens(end - start, dtype)
    got, wanted = torch.empty_like(data), torch.empty_like(data)
    three.read(blocks, start, end, got)
    one.read(blocks, start, end, wanted)
    assert torch.equal(got, wanted)
    for kv in (one, three):
        kv.write(blocks, start, end, data)
        kv.copy_blocks([(0, 9), (9, 0)])
    assert torch.equal(torch.cat(parts, dim=2), one.tensor)
    assert (three.num_kv_heads, three.num_bytes) == (one.num_kv_heads, one.num_bytes)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_write_converts_as_torch_does(source: torch.dtype, target: torch.dtype) -> None:
    """Each pair of dtypes gives bit for bit what `tensor.to` gives, infinities, denormals and ties included."""
    numbers = [0.0, -0.0, 1e-45, 6e-8, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-11, 65504.0, 65520.0, 3.4e38, float("inf")]
    kv, data = PagedKv(torch.zeros(1, 2, 1, 2, 32, 1, dtype=target)), tokens(1)
    data = torch.cat([torch.tensor(numbers), torch.randn(53, generator=torch.Generator().manual_seed(0)) * 1e-5])
    data = data.to(source).reshape(1, 2, 1, 32, 1)
    kv.write([1, 0], 0, 32, data)
    assert torch.equal(kv.tensor[:, :, :, 1], data.to(target))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_bfloat16_rounding_equals_torch(values: list[float]) -> None:
    """Any float32 rounds to the bits that torch rounds it to, and widens back without change."""
    wanted = torch.tensor(values).to(torch.bfloat16)
    bits = round_to_bfloat16(np.array(values, dtype=np.float32))
    assert bits.tolist() == as_array(wanted).tolist()
    assert widen_bfloat16(bits).tolist() == wanted.float().tolist()


def test_nan_stays_nan() -> None:
    """Every kind of NaN is a NaN in every dtype, never an infinity."""
    patterns = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0xFF800001], dtype=np.uint32)
    for target in ("bfloat16", "float16"):
        got = convert_floats(patterns.view(np.float32), "float32", target)
        wide = widen_bfloat16(got) if target == "bfloat16" else got
        assert np.isnan(wide).all()


@pytest.mark.parametrize(
    ("blocks", "start", "end", "reason"),
    [
        ([0, 1], 0, 9, r"tokens \[0, 9\) are not in the 8 that 2 blocks hold"),
        ([0, 1], -1, 3, r"tokens \[-1, 3\)"),
        ([0, 1], 3, 3, r"tokens \[3, 3\)"),
        ([0, 11], 0, 5, r"block ids 0 to 11 are not in \[0, 11\)"),
        ([-1], 0, 2, "block ids -1 to -1"),
    ],
)
def test_ranges_and_ids_outside_are_refused(blocks: list[int], start: int, end: int, reason: str) -> None:
    """Reading and writing outside of KV raise, say why, and change nothing."""
    kv = make_kv()
    before, data = kv.tensor.clone(), tokens(max(1, end - start))
    for call in (kv.read, kv.write):
        with pytest.raises(ValueError, match=reason):
            call(blocks, start, end, data)
    assert torch.equal(kv.tensor, before)


def test_block_ids_outside_the_range_do_not_count() -> None:
    """Only the blocks that the range touches must be real; a table may be longer."""
    kv, data = make_kv(), tokens(3)
    kv.write([2, 99], 1, 4, data)
    assert torch.equal(kv.tensor[:, :, :, 2, 1:4], data)


def test_wrong_tensors_are_refused() -> None:
    """Shape, dtype and layout of the other tensor are checked before anything is copied."""
    kv = make_kv()
    with pytest.raises(ValueError, match=r"must be \(2, 2, 3, 5, 4\) and contiguous"):
        kv.read([0, 1], 0, 5, tokens(4))
    with pytest.raises(ValueError, match="contiguous"):
        kv.write([0, 1], 0, 4, tokens(4).transpose(0, 1).contiguous().transpose(0, 1))
    with pytest.raises(ValueError, match="KV's own dtype"):
        kv.read([0, 1], 0, 5, tokens(5, torch.bfloat16))
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        kv.write([0, 1], 0, 5, tokens(5).double())


def test_copy_blocks_reads_all_sources_first() -> None:
    """A swap works: no source is overwritten before it was read."""
    kv = make_kv()
    before = kv.tensor.clone()
    kv.copy_blocks([(1, 2), (2, 1), (3, 4)])
    assert torch.equal(kv.tensor[:, :, :, [2, 1, 4]], before[:, :, :, [1, 2, 3]])
    rest = [block for block in range(11) if block not in (1, 2, 4)]
    assert torch.equal(kv.tensor[:, :, :, rest], before[:, :, :, rest])
    with pytest.raises(ValueError, match="block ids"):
        kv.copy_blocks([(0, 11)])


def test_threads_on_different_blocks_do_not_disturb_each_other() -> None:
    """Four threads write and read their own blocks many times; each finds what it wrote."""
    kv, failures = make_kv(num_blocks=12), []

    def work(number: int) -> None:
        blocks, out = [3 * number, 3 * number + 2, 3 * number + 1], tokens(10)
        for turn in range(50):
            data = tokens(10, seed=100 * number + turn)
            kv.write(blocks, 1, 11, data)
            kv.read(blocks, 1, 11, out)
            if not torch.equal(out, data):
                failures.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
