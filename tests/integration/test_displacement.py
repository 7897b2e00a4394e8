"""Full queues of both tiers: who comes last by rank is turned away, whether it waited or came just now."""

import asyncio

import pytest

from services.common.errors import QueueFull
from services.common.priority import Priority
from services.common.types import Tier
from tests.harness.fake_engine import FakeEngine, FakeLimits
from tests.harness.split_cluster import entered
from tests.harness.tiers import TierServer, at_rest, collect, running, work

PROMPT = list(range(10, 40))


@pytest.mark.parametrize("tier", [Tier.PREFILL, Tier.DECODE])
async def test_a_full_queue_keeps_the_best(tier: Tier) -> None:
    """In either tier a prompt of a higher class takes the last one's place, and a lower one finds the queue full."""
    engine = FakeEngine(FakeLimits(max_num_seqs=1))
    bounds = {"seats_ahead": 0} if tier is Tier.DECODE else {}
    server = TierServer(tier, engine, max_queued_requests=2, **bounds)

    def ask(priority: Priority, token: int) -> asyncio.Task[object]:
        request = work([token, *PROMPT], priority=priority)
        return asyncio.ensure_future(
            server.prefill.prefill(request) if tier is Tier.PREFILL else collect(server.decode.decode(request))
        )

    async with running(server):
        engine.gate.clear()
        calls = [ask(Priority.LOW, 0)]
        await entered(engine)
        for token, priority in enumerate((Priority.NORMAL, Priority.LOW), start=1):
            calls.append(ask(priority, token))
            await server.settled(lambda: server.tier.load().counters["live_requests"] == len(calls))
        with pytest.raises(QueueFull, match="that is all"):
            await ask(Priority.LOW, 3)
        calls.append(ask(Priority.HIGH, 4))
        with pytest.raises(QueueFull, match="higher priority took its place") as caught:
            await calls.pop(2)
        assert caught.value.details["reason"] == "displaced"
        assert caught.value.retry_after_s
        for reason in ("full", "displaced"):
            labels = {"reason": reason, "priority": "low"}
            assert server.registry.get_sample_value(f"baton_{tier.value}_shed_total", labels) == 1
        engine.gate.set()
        await asyncio.gather(*calls)
        await at_rest(server)


async def test_nobody_is_displaced_for_who_finds_no_room_all_the_same() -> None:
    """A long prompt of high priority that would not fit beside those before it is refused, and the others stay."""
    engine = FakeEngine(FakeLimits(max_num_seqs=1))
    server = TierServer(Tier.PREFILL, engine, max_queued_tokens=4 * len(PROMPT))
    async with running(server):
        engine.gate.clear()
        first = asyncio.ensure_future(server.prefill.prefill(work(PROMPT)))
        await entered(engine)
        low = [asyncio.ensure_future(server.prefill.prefill(work(PROMPT, priority=Priority.LOW))) for _ in range(2)]
        await server.settled(lambda: server.tier.load().counters["live_requests"] == 3)
        with pytest.raises(QueueFull):
            await server.prefill.prefill(work(list(range(97)) + PROMPT, priority=Priority.HIGH))
        long = asyncio.ensure_future(server.prefill.prefill(work([*PROMPT, *PROMPT], priority=Priority.HIGH)))
        done, calls = await asyncio.wait(low, return_when=asyncio.FIRST_COMPLETED)
        engine.gate.set()
        assert [type(call.exception()) for call in done] == [QueueFull]
        await asyncio.gather(first, long, *calls)
        await at_rest(server)
