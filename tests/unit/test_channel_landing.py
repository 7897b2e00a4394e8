"""Where a fetch's KV lands: what is refused, and that nothing is written after the fence."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from services.common.errors import BatonError, KvCorrupt
from services.kvtransfer.checksum import checksum_of
from services.kvtransfer.events import ChunkHeader, FetchEnd
from services.kvtransfer.landing import Landing
from services.kvtransfer.staging import as_kv, token_bytes
from tests.harness.fake_kv import LAYOUT, FakeKv

BLOCKS = (3, 1, 2)
TOKENS = 10
WAIT_S = 20.0


def make(kv: FakeKv, *, checksum: bool = True) -> Landing:
    return Landing("f", kv, BLOCKS, 0, TOKENS, checksum=checksum)


def message(start: int, end: int) -> tuple[ChunkHeader, Tensor]:
    """A chunk as a source would send it."""
    source = FakeKv()
    source.fill(BLOCKS, start, end)
    data = torch.zeros((end - start) * token_bytes(LAYOUT), dtype=torch.uint8)
    source.read(BLOCKS, start, end, as_kv(data, LAYOUT))
    header = ChunkHeader(
        sequence=1,
        fetch_id="f",
        epoch=1,
        start_token=start,
        end_token=end,
        num_bytes=data.numel(),
        checksum=checksum_of(data),
    )
    return header, data


async def test_chunks_in_order_land() -> None:
    """Verified chunks are in the blocks and the landing completes."""
    kv = FakeKv()
    landing = make(kv)
    for start, end in ((0, 4), (4, TOKENS)):
        assert landing.land(*message(start, end), LAYOUT) is None
    landing.complete(FetchEnd(fetch_id="f"))
    assert (await landing.arrived).fetch_id == "f"
    assert kv.holds(BLOCKS, 0, TOKENS)


@pytest.mark.parametrize(("start", "end"), [(3, 6), (5, 8), (4, 4), (4, TOKENS + 1)], ids=str)
async def test_gap_overlap_or_overrun_is_refused(start: int, end: int) -> None:
    """Whatever does not continue at the next position is corrupt, and nothing of it is written."""
    kv = FakeKv()
    landing = make(kv)
    landing.land(*message(0, 4), LAYOUT)
    assert isinstance(landing.land(*message(start, end), LAYOUT), KvCorrupt)
    assert kv.writes == [(0, 4)]


async def test_wrong_size_is_refused() -> None:
    """Bytes that cannot be these tokens are never reshaped into blocks."""
    kv = FakeKv()
    header, data = message(0, 4)
    assert isinstance(make(kv).land(replace(header, end_token=5), data, LAYOUT), KvCorrupt)
    assert kv.writes == []


async def test_wrong_checksum_is_refused() -> None:
    """One changed byte, nothing written."""
    kv = FakeKv()
    header, data = message(0, 4)
    data[17] += 1
    assert isinstance(make(kv).land(header, data, LAYOUT), KvCorrupt)
    assert kv.writes == []


async def test_missing_checksum_is_refused_where_one_is_demanded() -> None:
    """A source without checksums does not switch the sink's off."""
    header, data = message(0, 4)
    bare = replace(header, checksum=None)
    refused = make(FakeKv()).land(bare, data, LAYOUT)
    assert isinstance(refused, KvCorrupt)
    assert "without a checksum" in refused.message
    assert make(FakeKv(), checksum=False).land(bare, data, LAYOUT) is None


async def test_end_before_all_tokens_is_corrupt() -> None:
    """A source that stops early does not pass for one that is done."""
    landing = make(FakeKv())
    landing.land(*message(0, 4), LAYOUT)
    landing.complete(FetchEnd(fetch_id="f"))
    with pytest.raises(KvCorrupt, match="token 4 of 10"):
        await landing.arrived


async def test_nothing_is_written_after_the_fence() -> None:
    """Bytes that arrive late are dropped: the blocks may belong to somebody else."""
    kv = FakeKv()
    landing = make(kv)
    await landing.fence()
    assert landing.land(*message(0, 4), LAYOUT) is None
    assert kv.writes == []
    assert landing.next_token == 0


class SlowKv(FakeKv):
    """Stops in the middle of a write until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()

    def write(self, *args: object) -> None:  # type: ignore[override]
        self.has_begun.set()
        assert self.may_go_on.wait(WAIT_S)
        super().write(*args)  # type: ignore[arg-type]


async def test_fence_waits_for_a_write_in_progress_even_when_cancelled() -> None:
    """The fence returns only when the write is over; a cancellation meanwhile is raised afterwards."""
    kv = SlowKv()
    landing = make(kv)
    results: list[BatonError | None] = []
    writer = threading.Thread(target=lambda: results.append(landing.land(*message(0, 4), LAYOUT)))
    writer.start()
    assert await asyncio.to_thread(kv.has_begun.wait, WAIT_S)
    fencing = asyncio.create_task(landing.fence())
    await asyncio.sleep(0)
    fencing.cancel()
    done, _ = await asyncio.wait({fencing}, timeout=0.05)
    assert not done
    kv.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await fencing
    assert kv.writes == [(0, 4)]
    await asyncio.to_thread(writer.join, WAIT_S)
    assert results == [None]
