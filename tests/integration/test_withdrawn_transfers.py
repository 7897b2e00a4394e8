"""Cancel and deadline around the transfer, where messages are on the wire, and storms of cancels."""

import asyncio
import random
import time
from typing import Any

import grpc
import pytest

from services.common.types import Tier
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_engine import FakeLimits, expected_tokens
from tests.harness.faulty_transport import Fault, FaultPlan, faulty
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import GREEDY, until

PROMPT = list(range(10, 40))
LIMITS = FakeLimits(max_num_seqs=4, max_num_batched_tokens=8)
# P1 allows a second more; the rest is for a loaded machine.
DEADLINE_S = 2.0
GRACE_S = 10.0
# Message 0 of a channel is its probe.
MESSAGES = {"before the channel is open": 0, "first message": 1, "mid-transfer": 2}


async def code_of(call: Any) -> grpc.StatusCode:
    """Reads a call to its end."""
    try:
        async for _ in call:
            pass
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    return await call.code()


def chunk_by_chunk(cluster: SplitCluster) -> None:
    """Has the first chunk's KV arrive before the second one computes, so that it takes more than one message."""

    def wait(items: object) -> None:
        deadline = time.monotonic() + 10
        while cluster.prefill.engine.steps and not cluster.decode.engine.kv.data.any() and time.monotonic() < deadline:
            time.sleep(0.002)

    cluster.prefill.engine.on_step = wait


@pytest.mark.parametrize("phase", MESSAGES)
@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_withdrawn_around_the_transfer(phase: str, way: str):
    """With a message on the wire: the right status at once, no block held, no decode step, the next request right."""
    plan = FaultPlan({MESSAGES[phase]: Fault.HOLD})
    held = {Tier.PREFILL: {"transports": {"gloo": faulty(open_gloo, plan)}}}
    async with split_cluster(LIMITS, own=held) as cluster:
        if phase == "mid-transfer":
            chunk_by_chunk(cluster)
        call = cluster.start(PROMPT, **({"timeout_s": DEADLINE_S} if way == "deadline" else {}))
        reading = asyncio.create_task(code_of(call))
        await until(plan.reached.is_set)
        await until(lambda: cluster.decode.tier.load().counters["live_requests"] == 1)
        if way == "cancel":
            call.cancel()
        wanted = grpc.StatusCode.CANCELLED if way == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
        assert await asyncio.wait_for(reading, DEADLINE_S + GRACE_S) is wanted
        # Nothing waits for the message: what it was for is gone on both sides while it is still held.
        await cluster.at_rest()
        assert cluster.decode.engine.steps == 0
        plan.go_on.set()
        assert await cluster.tokens(PROMPT, max_tokens=8) == expected_tokens(PROMPT, GREEDY, 8)
        await cluster.at_rest()


async def storm(cluster: SplitCluster, calls: int, rng: random.Random) -> None:
    """Starts calls at once and cancels each at a moment of its own: at once, or after some of its messages."""

    async def one(number: int) -> None:
        call = cluster.start([number % 90, *PROMPT], max_tokens=40)
        for _ in range(rng.choice([0, 0, 1, 2, 5])):
            try:
                if await call.read() is grpc.aio.EOF:
                    return
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                return
        if rng.random() < 0.5:
            await asyncio.wait({asyncio.create_task(call.code())}, timeout=rng.random() / 20)
        call.cancel()

    await asyncio.gather(*(one(number) for number in range(calls)))


@pytest.mark.parametrize(
    ("waves", "calls"), [(2, 40), pytest.param(4, 300, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_cancel_storm_leaves_a_healthy_service(waves: int, calls: int):
    """After waves of cancels at random moments nothing is held anywhere, and the next answer is right."""
    rng = random.Random(7)
    async with split_cluster(LIMITS) as cluster:
        for _ in range(waves):
            await storm(cluster, calls, rng)
            await cluster.at_rest()
            assert await cluster.tokens(PROMPT, max_tokens=8) == expected_tokens(PROMPT, GREEDY, 8)
        await cluster.at_rest()
        await until(lambda: cluster.decode.tier.load().counters["sink_fetches"] == 0)
        await until(lambda: cluster.decode.tier.load().counters["sink_releases"] == 0)
        assert cluster.prefill.fatal.error is None
        assert cluster.decode.fatal.error is None
