"""The engine thread's side of the prefill tier: applies commands, plans chunks, runs them, reports what happened.

Knows neither asyncio nor tickets; the worker on the event loop does. Everything here runs on the engine thread.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.common.errors import BatonError, Internal
from services.common.priority import rank
from services.common.types import ChoiceTokens, StageTimes, WorkRequest
from services.engine.batch import BatchItem, ItemResult, SampleSpec
from services.engine.blocks import BlockPool
from services.engine.isolation import step_apart, step_failed
from services.engine.stopping import StopRule
from services.prefill.messages import Advanced, Await, Command, Failed, Finished, Release, Report, Stop, Submit
from services.prefill.prompt import Prompt
from services.prefill.scheduler import Chunk, PrefillScheduler

if TYPE_CHECKING:
    from services.engine.engine import Engine

IDLE_CHECK_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Active:
    """What the engine thread knows of a prompt besides the scheduler's part."""

    request: WorkRequest
    rule: StopRule
    submitted_ns: int
    started_ns: int = 0


class PrefillStepLoop:
    """Drives an engine over prompts. `report` is called after every step and every command that frees blocks."""

    def __init__(
        self,
        engine: "Engine",
        pool: BlockPool,
        scheduler: PrefillScheduler,
        aging_s: float,
        report: Callable[[Report], None],
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._scheduler = scheduler
        self._aging_s = aging_s
        self._report = report
        self._active: dict[int, _Active] = {}
        self._checked_at = 0.0

    def handle(self, command: Command) -> None:
        """Applies one command."""
        match command:
            case Submit():
                self._submit(command)
            case Await(key, is_awaited):
                self._scheduler.note_awaited(key, is_awaited=is_awaited)
            case Stop(key):
                self._scheduler.stop(key)
                self._active.pop(key, None)
            case Release(key):
                self._scheduler.release(key)
        self._send(())

    def step(self) -> bool:
        """Runs one step; False where there was nothing to compute."""
        chunks = self._scheduler.plan()
        if not chunks:
            self._check_when_due()
            return False
        self._announce(chunks)
        results = self._compute(chunks)
        self._send(tuple(self._settle(chunk, result) for chunk, result in zip(chunks, results, strict=True)))
        return True

    def _compute(self, chunks: Sequence[Chunk]) -> list[ItemResult]:
        """Results of the chunks; before a dead engine ends the thread, they learn that they were in it."""
        try:
            return step_apart(self._engine, self._pool, [self._item(chunk) for chunk in chunks])
        except Exception as error:
            self._send(tuple(Failed(chunk.prompt.key, step_failed(error)) for chunk in chunks))
            raise

    def _announce(self, chunks: Sequence[Chunk]) -> None:
        """Reports newly admitted prompts before they are computed: a sink can get ready meanwhile."""
        now = time.monotonic_ns()
        admitted = [chunk.prompt for chunk in chunks if not self._active[chunk.prompt.key].started_ns]
        for prompt in admitted:
            self._active[prompt.key].started_ns = now
        if admitted:
            self._send(tuple(Advanced(prompt.key, prompt.block_ids, prompt.computed) for prompt in admitted))

    def _check_when_due(self) -> None:
        """Verifies the block accounts while there is nothing better to do."""
        now = time.monotonic()
        if now - self._checked_at >= IDLE_CHECK_INTERVAL_S:
            self._pool.check()
            self._checked_at = now

    def _submit(self, command: Submit) -> None:
        request = command.request
        limits = self._engine.limits
        rule = StopRule.of(
            request.sampling,
            prompt_tokens=len(request.token_ids),
            max_model_len=limits.max_model_len,
            eos_token_ids=limits.eos_token_ids,
        )
        self._active[command.key] = _Active(request, rule, time.monotonic_ns())
        self._scheduler.submit(
            Prompt(
                key=command.key,
                token_ids=request.token_ids,
                cache_salt=request.cache_salt,
                rank=rank(request.priority, time.monotonic(), self._aging_s),
                is_awaited=command.is_awaited,
            )
        )

    def _item(self, chunk: Chunk) -> BatchItem:
        active = self._active[chunk.prompt.key]
        sampling = active.request.sampling
        samples = tuple(
            SampleSpec(
                sampling=sampling,
                choice=choice,
                index=0,
                prompt_ids=chunk.prompt.token_ids,
                stop_ids=active.rule.stop_ids,
                is_stop_allowed=active.rule.is_stop_allowed(0),
            )
            for choice in range(sampling.n if chunk.is_last else 0)
        )
        return BatchItem(
            token_ids=chunk.prompt.token_ids[chunk.start : chunk.end],
            start=chunk.start,
            block_ids=chunk.prompt.block_ids,
            samples=samples,
        )

    def _settle(self, chunk: Chunk, result: ItemResult) -> Advanced | Finished | Failed:
        prompt = chunk.prompt
        if result.error is not None:
            self._pool.forget(prompt.block_ids)
            self._scheduler.stop(prompt.key)
            self._active.pop(prompt.key)
            error = result.error
            return Failed(prompt.key, error if isinstance(error, BatonError) else Internal(str(error)))
        self._scheduler.commit(chunk)
        if not chunk.is_last:
            return Advanced(prompt.key, prompt.block_ids, chunk.end)
        active = self._active.pop(prompt.key)
        first_tokens = tuple(
            ChoiceTokens(choice, (token,), active.rule.reason(token.id, 0))
            for choice, token in enumerate(result.tokens)
        )
        return Finished(prompt.key, prompt.block_ids, first_tokens, _stages(active), prompt.cached)

    def _send(self, events: tuple[Advanced | Finished | Failed, ...]) -> None:
        self._report(Report(events, self._scheduler.stats(), self._pool.stats(), self._pool.take_changes()))


def _stages(active: _Active) -> StageTimes:
    now = time.monotonic_ns()
    return StageTimes(queue_ns=active.started_ns - active.submitted_ns, prefill_ns=now - active.started_ns)
