"""Requests that decode runs alone by choice move and are hedged as any others."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from services.common.errors import PeerUnreachable
from services.common.types import Load, SizedTime, Tier
from services.frontend.fallback import Fallback
from services.frontend.request import Completion, Output
from services.frontend.routing.shortcut import Shortcut
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within

MS = 10**6
ANSWER = ids_of("the capital of France is Paris.")
# Steps of about 10 ms whatever is fed, and handoffs of 50 ms: no prompt is worth one.
MEASURED = Load(
    free_blocks=64,
    total_blocks=64,
    step_times=(SizedTime(1, 10 * MS), SizedTime(64, 11 * MS)),
    handoff_times=(SizedTime(64, 50 * MS),),
)


@contextlib.asynccontextmanager
async def measured(**settings: Any) -> AsyncIterator[tuple[Cluster, ScriptedWorker, ScriptedWorker]]:
    """A cluster of known speed, and its two decode workers: the one that is picked first, and the fuller one."""
    tiers = (Tier.PREFILL, Tier.DECODE, Tier.DECODE)
    async with cluster(Script(ANSWER), tiers, **settings) as running:
        prefill, first, other = running.workers
        other.script = Script(ANSWER)
        reports = {prefill: MEASURED, first: MEASURED, other: dataclasses.replace(MEASURED, free_blocks=50)}
        for worker, report in reports.items():
            worker.report(report)
        members = running.process.members
        await eventually(lambda: all(candidate.load.step_times for candidate in members.snapshot().candidates))
        yield running, first, other


def completion_of(outputs: list[Output]) -> Completion:
    """The last message's."""
    completion = outputs[-1].completion
    assert completion is not None
    return completion


async def test_a_worker_that_fails_before_the_first_token_is_replaced() -> None:
    """The request starts again on the other decode worker, by choice there, too."""
    async with measured() as (running, first, other):
        first.script = Script(ANSWER)
        first.script.decode_error = PeerUnreachable("the machine is gone")
        outputs = await running.outputs()
        completion = completion_of(outputs)
        assert tokens_of(outputs) == ANSWER
        assert (completion.moves, completion.decode_worker_id) == (1, other.worker_id)
        assert (completion.shortcut, completion.fallback) == (Shortcut.SHORT_PROMPT, Fallback.NONE)
        assert not running.prefill.requests


async def test_a_worker_that_fails_after_it_is_migrated_from() -> None:
    """The stream goes on at its next token; the answer names the migration, which was no choice."""
    async with measured() as (running, first, other):
        first.script = Script(ANSWER)
        first.script.decode_error = PeerUnreachable("the machine is gone")
        first.script.decode_error_at = 3
        outputs = await running.outputs()
        completion = completion_of(outputs)
        assert tokens_of(outputs) == ANSWER
        assert (completion.moves, completion.decode_worker_id) == (1, other.worker_id)
        assert (completion.shortcut, completion.fallback) == (Shortcut.NONE, Fallback.MIGRATION)


async def test_a_late_first_token_is_hedged() -> None:
    """A worker that does not speak loses the request to a second route, and is told so."""
    async with measured(hedge_factor=3.0) as (running, first, other):
        for _ in range(20):
            assert completion_of(await running.outputs()).shortcut is Shortcut.SHORT_PROMPT
        await running.idle()
        first.script = Script(ANSWER)
        first.script.handoff.clear()
        other.script.handoff.clear()
        first.asked.clear()
        answer = asyncio.create_task(running.outputs())
        await within(first.asked.wait())  # a call that never got there could not be seen to be cancelled
        other.script.handoff.set()
        outputs = await within(answer)
        completion = completion_of(outputs)
        assert tokens_of(outputs) == ANSWER
        assert (completion.hedged, completion.decode_worker_id) == (True, other.worker_id)
        await within(first.cancelled.wait())
        first.script.handoff.set()
