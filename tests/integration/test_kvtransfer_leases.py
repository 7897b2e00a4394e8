"""Leases and fences on both sides of a handoff: nothing waits for ever, and nothing writes where it must not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.common.errors import ChannelBroken, Draining, PeerUnreachable, ReservationExpired, Retry
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import FetchOrder, Released
from services.kvtransfer.transport.gloo import open_gloo
from services.kvtransfer.transport.memory import MemoryExchange
from tests.harness.fake_kv import FakeKv, layout_with
from tests.harness.faulty_transport import Fault, FaultPlan, faulty
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, SINK_BLOCKS, Pair, kv_pair, until

LEASED = replace(CONFIG, reservation_s=1.0)
OTHER_SOURCE_BLOCKS = (30, 31, 32, 33, 34, 35)
OTHER = 3  # salt of another request's KV


@asynccontextmanager
async def held_pair(transport: str, plan: FaultPlan, config: TransferConfig = CONFIG) -> AsyncIterator[Pair]:
    """A pair whose source holds messages back, for longer than the test takes."""
    config = replace(config, operation_floor_s=60.0)
    layout = layout_with(transports=(transport,))
    open_transport = open_gloo if transport == "gloo" else MemoryExchange().open
    async with kv_pair(
        config,
        source_kv=FakeKv(layout),
        sink_kv=FakeKv(layout),
        source_transports={transport: faulty(open_transport, plan)},
        sink_transports={transport: open_transport},
    ) as pair:
        yield pair
        plan.go_on.set()


def prefill_other(pair: Pair, ticket_id: str) -> None:
    """Another prompt, whose KV looks different at every position."""
    pair.left.open(ticket_id, blocks=OTHER_SOURCE_BLOCKS)
    pair.left.kv.fill(OTHER_SOURCE_BLOCKS, 0, NUM_TOKENS, OTHER)
    pair.left.source.advance(ticket_id, NUM_TOKENS)
    pair.left.finish(ticket_id)


async def held_fetch(pair: Pair, plan: FaultPlan) -> "asyncio.Task[object]":
    """A fetch of which one message has landed and the next one is held on the wire."""
    pair.left.prefill("t")
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: plan.reached.is_set() and pair.kv.writes == [(0, 4)])
    return fetch


@pytest.mark.parametrize("transport", ["gloo", "memory"])
@pytest.mark.parametrize("way", ["cancel", "lease"])
async def test_late_message_never_reaches_blocks_that_were_given_on(transport: str, way: str) -> None:
    """A fetch ends with a message on the wire; its blocks go to another request, and the late message is dropped."""
    plan = FaultPlan({2: Fault.HOLD})
    async with held_pair(transport, plan, CONFIG if way == "cancel" else LEASED) as pair:
        fetch = await held_fetch(pair, plan)
        if way == "cancel":
            fetch.cancel()
        await asyncio.wait({fetch}, timeout=30)
        assert fetch.done()
        # The blocks belong to another request now; here its prompt is computed at once, as an engine would.
        pair.kv.fill(SINK_BLOCKS, 0, NUM_TOKENS, OTHER)
        writes = list(pair.kv.writes)
        plan.go_on.set()
        await until(lambda: pair.sink.stats()["messages_dropped_total"] >= 1)
        assert pair.kv.writes == writes
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS, OTHER)


async def test_blocks_given_on_get_the_next_fetch_alone() -> None:
    """The next fetch into the same blocks, over the same channel, is whole although the late message came before it."""
    plan = FaultPlan({2: Fault.HOLD})
    async with held_pair("gloo", plan) as pair:
        fetch = await held_fetch(pair, plan)
        fetch.cancel()
        await asyncio.wait({fetch})
        prefill_other(pair, "u")
        following = asyncio.create_task(pair.fetch("u"))
        await until(lambda: pair.sink.stats()["fetches"] == 1)
        plan.go_on.set()
        await following
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS, OTHER)
        assert pair.sink.stats()["channels_opened_total"] == 1
        assert pair.sink.stats()["messages_dropped_total"] >= 1


async def test_reservation_without_progress_ends() -> None:
    """Blocks do not wait for a silent source: a typed error sends the request elsewhere, the ticket is given back."""
    async with kv_pair(LEASED) as pair:
        await pair.sink.connect(pair.left.info)
        pair.left.open("t")
        pair.left.compute("t", 0, 4)
        with pytest.raises(ReservationExpired) as caught:
            await pair.fetch("t")
        assert caught.value.retry is Retry.OTHER_WORKER
        assert pair.sink.stats()["reservations_expired_total"] == 1
        await until(lambda: pair.left.released == ["t"])
        await until(lambda: pair.sink.stats()["aborts_total"] == 1)
        pair.sink._config = CONFIG  # the next one may take its time
        pair.left.prefill("next")
        await pair.fetch("next")


async def test_progress_renews_the_reservation() -> None:
    """A prompt that computes slowly, but goes on, may take longer than the lease."""
    tokens = 200
    blocks = tuple(range(50))
    lease_s = 1.2  # what a slow machine may take from one message to the next
    async with kv_pair(replace(CONFIG, reservation_s=lease_s)) as pair:
        await pair.sink.connect(pair.left.info)
        pair.left.open("t", tokens, blocks)
        fetch = asyncio.create_task(pair.fetch("t", blocks=blocks, num_tokens=tokens))
        began, computed = time.monotonic(), 0
        while time.monotonic() - began < 2 * lease_s and computed < tokens - 4:
            pair.left.compute("t", computed, computed + 4, blocks)
            computed += 4
            landed = computed
            await until(lambda landed=landed: bool(pair.kv.writes) and pair.kv.writes[-1][1] == landed)
            await asyncio.wait({fetch}, timeout=0.05)
        pair.left.compute("t", computed, tokens, blocks)
        pair.left.finish("t")
        await fetch
        assert pair.sink.stats()["reservations_expired_total"] == 0


async def test_release_says_what_it_stopped() -> None:
    """A prompt that computed, KV that was being sent, or nothing: the acknowledgement tells."""
    plan = FaultPlan({2: Fault.HOLD})
    async with held_pair("gloo", plan) as pair:
        source = pair.left.source
        assert source.release("never") == Released(was_open=False)
        pair.left.open("computing")
        assert source.release("computing") == Released(was_open=True, stopped_prefill=True)
        pair.left.prefill("done")
        assert source.release("done") == Released(was_open=True)
        fetch = await held_fetch(pair, plan)
        fetch.cancel()
        await asyncio.wait({fetch})
        await until(lambda: pair.sink.stats()["releases_total"] == 1)
        assert pair.sink.stats()["aborts_total"] == 1
        assert source.stats()["aborts_total"] == 2


async def test_release_is_repeated_until_it_is_acknowledged() -> None:
    """A source that misses the release twice is told a third time; its blocks are free long before the lease ends."""
    async with kv_pair() as pair:
        release, missed = pair.left.source.release, 2

        def deaf(ticket_id: str) -> Released:
            nonlocal missed
            if missed:
                missed -= 1
                raise PeerUnreachable("lost")
            return release(ticket_id)

        pair.left.source.release = deaf  # type: ignore[method-assign]
        pair.left.prefill("t")
        await pair.fetch("t")
        await until(lambda: pair.left.released == ["t"])
        await until(lambda: pair.sink.stats()["releases_total"] == 1)
        stats = pair.sink.stats()
        assert stats["release_retries_total"] == 2
        assert stats["releases_failed_total"] == 0


async def test_lost_release_is_caught_by_the_lease() -> None:
    """A source that never hears of the release frees the blocks itself; the sink gives up and counts it."""
    async with kv_pair(replace(CONFIG, lease_s=1.5)) as pair:

        def deaf(ticket_id: str) -> Released:
            raise PeerUnreachable("lost")

        pair.left.source.release = deaf  # type: ignore[method-assign]
        await pair.sink.connect(pair.left.info)
        pair.left.prefill("t")
        await pair.fetch("t")
        await until(lambda: pair.left.released == ["t"])
        assert pair.left.source.stats()["tickets_expired_total"] == 1
        await until(lambda: pair.sink.stats()["releases"] == 0)
        assert pair.sink.stats()["releases_failed_total"] == 1


async def test_ticket_given_back_before_the_prompt_came_is_never_computed() -> None:
    """A decode leg that ended early is known to the source when the prompt arrives: its blocks go back at once."""
    async with kv_pair() as pair:
        await pair.sink.connect(pair.left.info)
        pair.sink.give_back(pair.left.handoff("t"))
        await until(lambda: pair.sink.stats()["releases_total"] == 1)
        pair.left.open("t")
        await until(lambda: pair.left.released == ["t"])


async def test_wait_for_a_ticket_ends_with_its_source() -> None:
    """Whoever waits for a prompt that has not come learns at once that its worker leaves."""
    async with kv_pair() as pair:
        source = pair.left.source
        waiting = asyncio.create_task(source.await_ticket("never", time.monotonic() + 60))
        await until(lambda: source.stats()["fetches_waiting"] == 1)
        await source.close()
        with pytest.raises(Draining):
            await asyncio.wait_for(waiting, 30)


async def test_order_of_an_old_epoch_is_refused_and_counted() -> None:
    """A sink that still believes in an earlier channel gets ChannelBroken, not KV on the wrong one."""
    async with kv_pair() as pair:
        await pair.sink.connect(pair.left.info)
        pair.left.prefill("t")
        (channel,) = pair.left.source.channels.all()  # the only way to name the channel that is open
        order = FetchOrder(
            request_id="request-t",
            fetch_id="f",
            ticket_id="t",
            channel_id=channel.offer.channel_id,
            epoch=channel.offer.epoch + 1,
            start_token=0,
        )
        with pytest.raises(ChannelBroken):
            await pair.left.source.fetch(order, time.monotonic() + 30)
        assert pair.left.source.stats()["stale_orders_total"] == 1
