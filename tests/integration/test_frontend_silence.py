"""Workers that hold their connections open and say nothing, and pairs that are not proven, before a real frontend."""

import asyncio
from typing import Any

from services.common.types import Load, Tier
from services.frontend.fallback import Fallback
from tests.harness.scripted_frontend import Cluster, cluster, frontend, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within

ANSWER = ids_of("the capital of France is Paris.")
QUICK = {"heartbeat_s": 0.2}


class Silence:
    """Keeps a worker from reporting its load over an open stream, as a stopped process would, until it is lifted."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self._changes: Any = worker._changes
        self._lifted = asyncio.Event()
        self._speaks = self._changes.wait_closed
        self._changes.wait_closed = self._wait

    def lift(self) -> None:
        """The worker goes on."""
        self._changes.wait_closed = self._speaks
        self._lifted.set()

    async def _wait(self, timeout_s: float) -> bool:
        await self._lifted.wait()
        return False


async def _fallback(running: Cluster) -> Fallback:
    completion = (await running.outputs())[-1].completion
    assert completion is not None
    return completion.fallback


async def test_what_runs_on_a_worker_that_misses_its_heartbeats_moves() -> None:
    """A stream goes on elsewhere without a gap although no connection broke."""
    workers = [ScriptedWorker(Tier.DECODE, Script(ANSWER), worker_id=f"decode-{place}") for place in range(2)]
    for worker in workers:
        worker.script.steps.clear()
    async with frontend(workers, **QUICK) as running:
        await running.reachable(2)
        outputs = running.generate()
        first = await within(anext(outputs))
        victim, other = sorted(workers, key=lambda worker: not worker.requests)
        silence = Silence(victim)
        other.script.steps.set()
        rest = [output async for output in outputs]
        assert tokens_of([first, *rest]) == ANSWER
        assert rest[-1].completion is not None
        assert rest[-1].completion.moves == 1
        silence.lift()
        await running.reachable(2)


async def test_a_prefill_worker_that_falls_silent_before_the_handoff_is_done_is_replaced() -> None:
    """Decode waits for KV that will not come; the request goes on without that worker."""
    script = Script(ANSWER)
    script.handoff.clear()
    async with cluster(script, **QUICK) as running:
        outputs = running.generate()
        first = await within(anext(outputs))
        silence = Silence(running.prefill)
        await eventually(lambda: len(running.decode.requests) == 2)
        script.handoff.set()
        assert tokens_of([first, *[output async for output in outputs]]) == ANSWER
        silence.lift()


async def test_a_pair_is_used_once_its_channel_is_proven() -> None:
    """Without a proof decode serves alone when the grace is over, and the answer says why."""
    async with cluster(Script(ANSWER), pair_grace_s=0.0) as running:
        assert await _fallback(running) is Fallback.NONE
        snapshot = running.process.members.snapshot
        running.decode.report(Load(free_blocks=64, total_blocks=64, proven=()))
        await eventually(lambda: snapshot().is_unproven)
        assert await _fallback(running) is Fallback.NO_PROVEN_CHANNEL
        running.decode.report(Load(free_blocks=64, total_blocks=64, proven=(running.prefill.incarnation,)))
        await eventually(lambda: not snapshot().is_unproven)
        assert await _fallback(running) is Fallback.NONE


async def test_a_pair_that_is_being_opened_is_used_meanwhile() -> None:
    """A cluster that just started serves its first request the usual way."""
    async with cluster(Script(ANSWER), pair_grace_s=60.0) as running:
        running.decode.report(Load(free_blocks=64, total_blocks=63, proven=()))
        snapshot = running.process.members.snapshot
        await eventually(lambda: snapshot().candidates[0].load.total_blocks == 63)
        assert await _fallback(running) is Fallback.NONE
