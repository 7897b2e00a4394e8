"""The NCCL pair on real GPUs: bytes arrive, and a silent or dead peer is an error within its time limit."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import torch

from services.common.errors import ChannelBroken
from services.kvtransfer.rendezvous import SourceKeys
from services.kvtransfer.transport.base import Meeting
from services.kvtransfer.transport.nccl import NcclTransport, open_nccl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU of its own for each side of a pair"),
]

Pair = tuple[NcclTransport, NcclTransport]


def message(device: torch.device, value: int, num_bytes: int = 1 << 20) -> torch.Tensor:
    filled = torch.full((num_bytes,), value, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)  # it was filled on this thread's stream, and is sent by another thread
    return filled


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    keys = SourceKeys()
    sides = [
        asyncio.to_thread(partial(open_nccl, Meeting(rank=rank, name="gpu", keys=keys), 30.0, rank)) for rank in (0, 1)
    ]
    source, sink = await asyncio.gather(*sides)
    yield source, sink
    source.abort()
    sink.abort()
    keys.close()


async def test_messages_arrive_in_order(pair: Pair) -> None:
    """Three messages, three contents, the right order."""
    source, sink = pair
    for value in (1, 2, 3):
        into = message(sink.device, 0)
        await asyncio.gather(
            asyncio.to_thread(source.send, message(source.device, value), 10.0),
            asyncio.to_thread(sink.receive, into, 10.0),
        )
        assert into.eq(value).all()
    assert sink.stats()["received_bytes"] == 3 << 20


async def test_silent_peer_is_an_error_in_time(pair: Pair) -> None:
    """A receive that nobody sends to ends by its own limit, though NCCL itself would wait."""
    _, sink = pair
    started = time.monotonic()
    with pytest.raises(ChannelBroken):
        await asyncio.to_thread(sink.receive, message(sink.device, 0), 0.5)
    assert time.monotonic() - started < 5


async def test_abort_wakes_a_waiting_receive(pair: Pair) -> None:
    """Aborting from another thread ends a blocked receive at once."""
    _, sink = pair
    receiving = asyncio.create_task(asyncio.to_thread(sink.receive, message(sink.device, 0), 60.0))
    done, _ = await asyncio.wait({receiving}, timeout=0.2)
    assert not done
    sink.abort()
    with pytest.raises(ChannelBroken):
        async with asyncio.timeout(5):
            await receiving
