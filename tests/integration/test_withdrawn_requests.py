"""Cancel and deadline in every phase of a split request: the right status, compute stopped, all blocks free."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from services.engine.batch import BatchItem
from tests.harness.fake_engine import FakeLimits, expected_tokens
from tests.harness.split_cluster import SplitCluster, entered, split_cluster
from tests.harness.tiers import GREEDY, until

PROMPT = list(range(10, 40))
OTHER = list(range(50, 80))
LIMITS = FakeLimits(max_num_seqs=2, max_num_batched_tokens=8)
# Long enough for a request to get to where it is held; P1 allows a second more, the rest is for a loaded machine.
DEADLINE_S = 2.0
GRACE_S = 10.0


async def in_queue(cluster: SplitCluster) -> None:
    """Both slots of the prefill worker are taken and its engine stands still: the request waits."""
    cluster.prefill.engine.gate.clear()
    for start in (0, 1):
        cluster.start([start, *OTHER])
    await until(lambda: cluster.prefill.tier.load().counters["live_requests"] == 2)
    await entered(cluster.prefill.engine)


async def in_prefill(cluster: SplitCluster) -> None:
    """The prefill worker's engine will stand still in the request's first chunk."""
    cluster.prefill.engine.gate.clear()


async def in_handoff(cluster: SplitCluster) -> None:
    """The decode worker's engine stands still in another request's step: it cannot reserve blocks for this one."""
    cluster.decode.engine.gate.clear()
    cluster.start(OTHER)
    await entered(cluster.decode.engine)


async def in_decode(cluster: SplitCluster) -> None:
    """The decode worker's engine will stand still in the request's first step."""
    cluster.decode.engine.gate.clear()


async def reached_queue(cluster: SplitCluster) -> None:
    await until(lambda: cluster.prefill.tier.load().counters["live_requests"] == 3)


async def reached_prefill(cluster: SplitCluster) -> None:
    await entered(cluster.prefill.engine)


async def reached_handoff(cluster: SplitCluster) -> None:
    await until(lambda: cluster.prefill.tier.load().handoffs == 1 and cluster.prefill.tier.load().running_requests == 0)


async def reached_decode(cluster: SplitCluster) -> None:
    await entered(cluster.decode.engine)


# Other requests of a phase, which go on when this one is withdrawn.
OTHERS = {"queue": 2, "handoff": 1}
# Prompt positions that may have been computed by then: nothing, one chunk, all.
MOST_FED = {"queue": 0, "prefill": LIMITS.max_num_batched_tokens, "handoff": len(PROMPT), "decode": len(PROMPT)}

Step = Callable[[SplitCluster], Awaitable[None]]
PHASES: dict[str, tuple[Step, Step]] = {
    "queue": (in_queue, reached_queue),
    "prefill": (in_prefill, reached_prefill),
    "handoff": (in_handoff, reached_handoff),
    "decode": (in_decode, reached_decode),
}


class Meter:
    """Counts the prompt positions of the withdrawn request that are computed."""

    def __init__(self, cluster: SplitCluster) -> None:
        self.fed = 0
        for worker in (cluster.prefill, cluster.decode):
            worker.engine.on_step = self._count

    def _count(self, items: Sequence[BatchItem]) -> None:
        for item in items:
            if list(item.token_ids) == PROMPT[item.start : item.start + len(item.token_ids)]:
                self.fed += len(item.token_ids)


async def ends_with(call: Any, code: grpc.StatusCode) -> None:
    """Reads a call to its end and checks its status."""
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        async for _ in call:
            pass
    assert await call.code() is code


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_withdrawn_request_leaves_nothing(phase: str, way: str):
    """Withdrawn in any phase: the right status, at most one more step, no block held, and the next request is right."""
    arrange, reached = PHASES[phase]
    others = OTHERS.get(phase, 0)
    async with split_cluster(LIMITS) as cluster:
        await arrange(cluster)
        meter = Meter(cluster)
        call = cluster.start(PROMPT, **({"timeout_s": DEADLINE_S} if way == "deadline" else {}))
        code = grpc.StatusCode.CANCELLED if way == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
        reading = asyncio.create_task(ends_with(call, code))
        await reached(cluster)
        if way == "cancel":
            call.cancel()
        await asyncio.wait_for(reading, DEADLINE_S + GRACE_S)
        for worker in (cluster.prefill, cluster.decode):
            await until(lambda worker=worker: worker.tier.load().counters["live_requests"] <= others)
        if phase != "queue":
            await until(lambda: cluster.prefill.tier.load().handoffs == 0)
        steps = cluster.decode.engine.steps
        cluster.prefill.engine.gate.set()
        cluster.decode.engine.gate.set()
        await cluster.at_rest()
        assert meter.fed <= MOST_FED[phase]
        if not others:
            assert cluster.decode.engine.steps <= steps + 1
        assert await cluster.tokens(PROMPT, max_tokens=8) == expected_tokens(PROMPT, GREEDY, 8)
        await cluster.at_rest()
