"""Fetches, tickets and channels that end early: whatever the phase, an answer in time and nothing left behind."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.common.errors import (
    BatonError,
    ChannelBroken,
    DeadlineExceeded,
    Internal,
    PeerUnreachable,
    TicketExpired,
    TicketUnknown,
)
from services.common.types import Tier
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.events import ChannelOffer, ChannelRequest, FetchOrder
from services.kvtransfer.sink import KvSink
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_kv import FakeKv
from tests.harness.faulty_transport import Fault, FaultPlan, faulty
from tests.harness.kv_pair import (
    CONFIG,
    NUM_TOKENS,
    SINK_BLOCKS,
    Pair,
    kv_pair,
    start_source,
    until,
    worker,
)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with kv_pair() as pair:
        await pair.sink.connect(pair.left.info)
        yield pair


async def cancel(fetch: "asyncio.Task[object]") -> None:
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch


async def still_works(pair: Pair) -> None:
    """The pair carries the next request, over the channel that it had."""
    opened = pair.sink.stats()["channels_opened_total"]
    pair.left.prefill("next")
    await pair.fetch("next")
    assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
    assert pair.sink.stats()["channels_opened_total"] == opened


async def test_cancel_while_the_prefill_queues(pair: Pair) -> None:
    """The ticket that comes too late closes at once, because the sink has given it back already."""
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
    await cancel(fetch)
    await until(lambda: pair.left.source.stats()["tombstones"] == 1)
    pair.left.open("t")
    await until(lambda: pair.left.released == ["t"])
    assert pair.left.source.stats()["fetches_waiting"] == 0
    await still_works(pair)


async def test_cancel_between_chunks(pair: Pair) -> None:
    """Nothing is written after the cancellation, the source gets its blocks back, the channel goes on."""
    pair.left.open("t")
    pair.left.compute("t", 0, 8)
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: len(pair.kv.writes) == 2)
    await cancel(fetch)
    await until(lambda: pair.left.released == ["t"])
    pair.left.compute("t", 8, NUM_TOKENS)
    pair.left.finish("t")
    await still_works(pair)
    assert pair.kv.writes[:3] == [(0, 4), (4, 8), (0, 4)]


async def test_cancel_while_a_message_is_on_the_wire() -> None:
    """A message that was announced is received and dropped: it may no longer touch the blocks."""
    plan = FaultPlan({2: Fault.HOLD})
    async with kv_pair(source_transports={"gloo": faulty(open_gloo, plan)}) as pair:
        pair.left.prefill("t")
        fetch = asyncio.create_task(pair.fetch("t"))
        assert await asyncio.to_thread(plan.reached.wait, 30)
        await until(lambda: len(pair.kv.writes) == 1)
        await cancel(fetch)
        plan.go_on.set()
        await until(lambda: pair.left.released == ["t"])
        await still_works(pair)
        assert pair.kv.writes[1] == (0, 4)


async def test_release_under_a_reader_waits_for_it(pair: Pair) -> None:
    """Blocks that the channel's thread reads come back only when it has finished, though the ticket is gone."""
    may_read, has_begun = threading.Event(), threading.Event()
    read = pair.left.kv.read

    def slow_read(*args: object) -> None:
        has_begun.set()
        assert may_read.wait(30)
        read(*args)  # type: ignore[arg-type]

    pair.left.kv.read = slow_read  # type: ignore[method-assign,assignment]
    pair.left.prefill("t")
    fetch = asyncio.create_task(pair.fetch("t"))
    assert await asyncio.to_thread(has_begun.wait, 30)
    assert pair.left.source.release("t").was_open
    await asyncio.sleep(0)
    assert pair.left.released == []
    assert pair.left.source.num_tickets == 1
    may_read.set()
    await until(lambda: pair.left.released == ["t"])
    with pytest.raises(TicketUnknown):
        await fetch


async def test_deadline_ends_the_wait_for_a_prefill(pair: Pair) -> None:
    """A prefill that never starts costs the deadline, not a second more, and leaves no waiter."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await pair.fetch("t", timeout_s=0.2)
    assert time.monotonic() - started < 10
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 0)
    await still_works(pair)


async def test_deadline_ends_the_wait_for_chunks(pair: Pair) -> None:
    """A prefill that stops half-way costs the deadline; its ticket is given back."""
    pair.left.open("t")
    pair.left.compute("t", 0, 5)
    with pytest.raises(DeadlineExceeded):
        await pair.fetch("t", timeout_s=0.3)
    await until(lambda: pair.left.released == ["t"])
    await still_works(pair)


@pytest.mark.parametrize("when", ["before", "waiting", "between"])
async def test_failed_prefill_fails_the_fetch_with_its_error(pair: Pair, when: str) -> None:
    """The sink learns why, at once, whether the prefill failed before it was opened, before the fetch, or half-way."""
    error = Internal("the prefill fell over")
    if when == "before":
        pair.left.source.fail("t", error)
    fetch = asyncio.create_task(pair.fetch("t"))
    if when == "waiting":
        await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
        pair.left.source.fail("t", error)
    if when == "between":
        pair.left.open("t")
        pair.left.compute("t", 0, 4)
        await until(lambda: len(pair.kv.writes) == 1)
        pair.left.source.fail("t", error)
        await until(lambda: pair.left.released == ["t"])
    with pytest.raises(Internal, match="fell over"):
        async with asyncio.timeout(15):
            await fetch


async def test_lease_ends_without_new_work() -> None:
    """A sink that never comes costs the lease: the timer gives the blocks back, nothing else needs to happen."""
    async with kv_pair(replace(CONFIG, lease_s=0.15)) as pair:
        pair.left.prefill("t")
        started = time.monotonic()
        await until(lambda: pair.left.released == ["t"])
        assert 0.1 < time.monotonic() - started < 10
        with pytest.raises(TicketExpired):
            await pair.fetch("t")


async def test_lease_that_ended_during_the_copy_fails_the_fetch(pair: Pair) -> None:
    """KV is never used when its ticket ended before the last byte was verified: the blocks may have been reused."""
    write = pair.kv.write
    loop = asyncio.get_running_loop()

    def write_and_expire(block_ids: tuple[int, ...], start: int, end: int, data: object) -> None:
        write(block_ids, start, end, data)  # type: ignore[arg-type]
        if end == NUM_TOKENS:
            # In this moment the end of the fetch is under way, and the ticket goes.
            done = threading.Event()
            loop.call_soon_threadsafe(lambda: (pair.left.source.release("t"), done.set()))
            assert done.wait(30)

    pair.kv.write = write_and_expire  # type: ignore[method-assign,assignment]
    pair.left.prefill("t")
    with pytest.raises((TicketExpired, TicketUnknown)):
        await pair.fetch("t")


async def test_restarted_source_replaces_the_old_one_at_once(pair: Pair) -> None:
    """A new incarnation drops the old channel and its fetches, and carries new ones."""
    waiting = asyncio.create_task(pair.fetch("t"))
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
    fresh = await start_source(FakeKv(), incarnation="i2")
    try:
        await pair.sink.connect(fresh.info)
        with pytest.raises(PeerUnreachable):
            await waiting
        assert pair.sink.is_connected("prefill-0", "i2")
        assert not pair.sink.is_connected("prefill-0", "i1")
        fresh.prefill("n")
        await Pair(fresh, pair.kv, pair.sink).fetch("n")
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
    finally:
        await pair.sink.disconnect("prefill-0")
        await fresh.stop()


async def test_handoff_of_an_earlier_process_is_refused(pair: Pair) -> None:
    """A ticket of a process that was restarted is gone: typed, at once, and the channel to the new one stays."""
    handoff = replace(pair.left.handoff("t"), incarnation="i0")
    with pytest.raises(PeerUnreachable, match="restarted"):
        await pair.sink.fetch(handoff, "r", SINK_BLOCKS, 0, NUM_TOKENS, time.monotonic() + 30)
    assert pair.sink.is_connected("prefill-0", "i1")
    await still_works(pair)


async def test_unreachable_source_is_a_typed_error_at_once() -> None:
    """Nobody listens: the fetch fails long before its deadline."""
    kv = FakeKv()
    sink = KvSink(kv, worker("decode-0", Tier.DECODE, kv), CONFIG)
    nobody = worker("prefill-9", Tier.PREFILL, kv, address="127.0.0.1:9")
    async with asyncio.timeout(30):
        with pytest.raises(PeerUnreachable):
            await sink.connect(nobody)
    await sink.close()


async def test_dead_sink_drops_its_channel_and_keeps_the_ticket(pair: Pair) -> None:
    """A sink that goes away mid-fetch takes its channel along; the ticket waits for its lease or another sink."""
    pair.left.open("t")
    pair.left.compute("t", 0, 4)
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: len(pair.kv.writes) == 1)
    pair.left.finish("t")
    await pair.sink.disconnect("prefill-0")
    with pytest.raises(BatonError):
        await fetch
    await until(lambda: pair.left.source.num_channels == 0)
    assert pair.left.source.stats()["fetches"] == 0


async def test_epoch_rises_with_each_rebuild(pair: Pair) -> None:
    """Two channels between the same processes never share an epoch."""
    epochs: list[int] = []
    for _ in range(3):
        client = KvTransferClient(pair.left.info.address, "prefill-0")
        kv = pair.kv
        request = ChannelRequest(sink=worker("decode-7", Tier.DECODE, kv), source_incarnation="i1", transport="gloo")
        events = client.open_channel(request)
        offer = await anext(events)
        assert isinstance(offer, ChannelOffer)
        epochs.append(offer.epoch)
        await events.aclose()
        await client.close()
    assert epochs == [1, 2, 3]


async def test_fetch_over_a_dead_channel_is_refused(pair: Pair) -> None:
    """A source never accepts a fetch for a channel or an epoch that is gone."""
    order = FetchOrder(request_id="r", fetch_id="f", ticket_id="t", channel_id="nowhere", epoch=1, start_token=0)
    client = KvTransferClient(pair.left.info.address, "prefill-0")
    with pytest.raises(ChannelBroken):
        await client.fetch(order, time.monotonic() + 30)
    await client.close()


async def test_disconnect_and_close_are_idempotent(pair: Pair) -> None:
    """Leaving twice is no error, and nothing can be fetched afterwards."""
    await pair.sink.disconnect("prefill-0")
    await pair.sink.disconnect("prefill-0")
    await pair.sink.close()
    await pair.sink.close()
    with pytest.raises(PeerUnreachable):
        await pair.fetch("t")


async def test_closing_the_source_fails_waiting_fetches(pair: Pair) -> None:
    """A source that shuts down tells everybody; every ticket is handed back exactly once."""
    pair.left.open("open")
    pair.left.prefill("ready")
    waiting = asyncio.create_task(pair.fetch("never"))
    half = asyncio.create_task(pair.fetch("open"))
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
    await until(lambda: pair.left.source.stats()["fetches"] == 1)
    await pair.left.source.close()
    results = await asyncio.gather(waiting, half, return_exceptions=True)
    assert all(isinstance(result, BatonError) for result in results)
    assert sorted(pair.left.released) == ["open", "ready"]
