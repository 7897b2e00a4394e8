"""The engine thread's side of the decode tier: applies commands, plans steps, runs them, reports new tokens.

Knows neither asyncio nor channels; the worker on the event loop does. Everything here runs on the engine thread.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.common.errors import BatonError, Internal
from services.common.priority import rank
from services.common.types import ChoiceTokens, Token, WorkRequest
from services.decode.messages import Command, Drop, Emitted, Event, Failed, Join, Progress, Report, Reserved, Submit
from services.decode.plan import Run, Share, StepPlan, new_runs, queue_class
from services.decode.scheduler import DecodeScheduler
from services.engine.batch import BatchItem, ItemResult, SampleSpec
from services.engine.blocks import BlockPool
from services.engine.isolation import step_apart, step_failed
from services.engine.stopping import StopRule

if TYPE_CHECKING:
    from services.engine.engine import Engine

IDLE_CHECK_INTERVAL_S = 1.0


@dataclass(slots=True)
class _Active:
    """What the engine thread knows of a request besides the scheduler's part."""

    request: WorkRequest
    rule: StopRule
    progress: Progress
    open_choices: set[int] = field(default_factory=set[int])


class DecodeStepLoop:
    """Drives an engine over runs. `report` is called after every step and every command."""

    def __init__(
        self,
        engine: "Engine",
        pool: BlockPool,
        scheduler: DecodeScheduler,
        aging_s: float,
        report: Callable[[Report], None],
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._scheduler = scheduler
        self._aging_s = aging_s
        self._report = report
        self._active: dict[int, _Active] = {}
        self._prefilled_tokens = 0
        self._preemptions = 0
        self._checked_at = 0.0

    def handle(self, command: Command) -> None:
        """Applies one command; commands for requests that have ended are ignored."""
        match command:
            case Submit(key, request):
                self._submit(key, request)
            case Join(key, first_tokens) if key in self._active:
                active = self._active[key]
                active.progress.joined_ns = time.monotonic_ns()
                active.open_choices = set(first_tokens)
                self._scheduler.join(key, first_tokens)
            case Drop(key):
                self._active.pop(key, None)
                self._scheduler.cancel(key)
            case Join():
                pass
        self._send([])

    def step(self) -> bool:
        """Runs one step; False where there was nothing to compute."""
        plan = self._scheduler.plan()
        admitted = (*plan.reserved, *plan.admitted)
        events: list[Event] = [Reserved(run.key, run.block_ids, run.cached) for run in admitted]
        self._note_plan(plan)
        if not plan.shares:
            self._send(events)
            self._check_when_due()
            return bool(plan.preempted)
        if events:
            self._send(events)  # the sink can fetch while this step computes
        if plan.copies:
            self._engine.copy_blocks(plan.copies)
        self._send(self._settle_all(plan.shares, self._compute(plan.shares)))
        return True

    def _compute(self, shares: Sequence[Share]) -> list[ItemResult]:
        """Results of the shares; before a dead engine ends the thread, they learn that they were in it."""
        try:
            return step_apart(self._engine, self._pool, [self._item(share) for share in shares])
        except Exception as error:
            self._send([Failed(key, step_failed(error)) for key in {share.run.key for share in shares}])
            raise

    def _note_plan(self, plan: StepPlan) -> None:
        now = time.monotonic_ns()
        for run in plan.preempted:
            self._active[run.key].progress.preemptions += 1
            self._preemptions += 1
        for run in plan.reserved:
            self._active[run.key].progress.cached_tokens = run.cached
        for share in plan.shares:
            progress = self._active[share.run.key].progress
            if not progress.started_ns:
                progress.started_ns = now
                if not progress.joined_ns:
                    progress.cached_tokens = share.run.cached
            if share.run.is_forked and not progress.decoding_ns:
                progress.decoding_ns = now

    def _check_when_due(self) -> None:
        """Verifies the block accounts while there is nothing better to do."""
        now = time.monotonic()
        if now - self._checked_at >= IDLE_CHECK_INTERVAL_S:
            self._pool.check()
            self._checked_at = now

    def _submit(self, key: int, request: WorkRequest) -> None:
        limits = self._engine.limits
        rule = StopRule.of(
            request.sampling,
            prompt_tokens=len(request.token_ids),
            max_model_len=limits.max_model_len,
            eos_token_ids=limits.eos_token_ids,
        )
        active = self._active[key] = _Active(request, rule, Progress(time.monotonic_ns()))
        active.open_choices = set(request.emitted)
        for run in new_runs(key, request, rank(queue_class(request), time.monotonic(), self._aging_s)):
            self._scheduler.submit(run)

    def _item(self, share: Share) -> BatchItem:
        run = share.run
        choices = range(0)
        if share.is_sampling:
            choices = range(run.choice, run.choice + 1) if run.is_forked else range(run.num_choices)
        return BatchItem(
            token_ids=run.tokens[share.start : share.end],
            start=share.start,
            block_ids=run.block_ids,
            samples=tuple(self._sample(run, choice) for choice in choices),
        )

    def _sample(self, run: Run, choice: int) -> SampleSpec:
        active = self._active[run.key]
        index = len(run.tokens) - run.num_prompt
        has_penalties = active.request.sampling.has_penalties
        return SampleSpec(
            sampling=active.request.sampling,
            choice=choice,
            index=index,
            prompt_ids=active.request.token_ids if has_penalties else (),
            output_ids=run.tokens[run.num_prompt :] if has_penalties else (),
            stop_ids=active.rule.stop_ids,
            is_stop_allowed=active.rule.is_stop_allowed(index),
        )

    def _settle_all(self, shares: Sequence[Share], results: Sequence[ItemResult]) -> list[Event]:
        """Applies the results; tokens of one request's choices share one event."""
        emitted: dict[int, list[ChoiceTokens]] = {}
        failed: dict[int, BatonError] = {}
        for share, result in zip(shares, results, strict=True):
            key = share.run.key
            if key in failed:
                continue
            if result.error is not None:
                self._pool.forget(share.run.block_ids)
                error = result.error
                failed[key] = error if isinstance(error, BatonError) else Internal(str(error))
                emitted.pop(key, None)
                continue
            self._count_prefilled(share)
            self._scheduler.commit(share)
            if result.tokens:
                emitted.setdefault(key, []).extend(self._accept(share.run, result.tokens))
        events: list[Event] = [self._emit(key, choices) for key, choices in emitted.items()]
        for key, error in failed.items():
            self._active.pop(key)
            self._scheduler.cancel(key)
            events.append(Failed(key, error))
        return events

    def _count_prefilled(self, share: Share) -> None:
        """Counts prompt tokens computed here, and all tokens computed again after a preemption."""
        run = share.run
        if share.end - share.start > 1 or share.start < run.num_prompt:
            tokens = share.end - share.start
            self._active[run.key].progress.prefilled_tokens += tokens
            self._prefilled_tokens += 0 if self._active[run.key].request.is_trial else tokens

    def _accept(self, run: Run, tokens: tuple[Token, ...]) -> list[ChoiceTokens]:
        """Appends sampled tokens to their choices and ends the choices that stop."""
        active = self._active[run.key]
        if run.is_forked:
            choices = [ChoiceTokens(run.choice, tokens, active.rule.reason(tokens[0].id, tokens[0].index))]
        else:
            choices = [ChoiceTokens(i, (token,), active.rule.reason(token.id, 0)) for i, token in enumerate(tokens)]
            active.open_choices = set(range(len(tokens)))
        active.progress.first_token_ns = active.progress.first_token_ns or time.monotonic_ns()
        going_on = {choice.choice: choice.tokens[0].id for choice in choices if choice.finish is None}
        active.open_choices -= {choice.choice for choice in choices if choice.finish is not None}
        if not run.is_forked:
            self._scheduler.fork(run, going_on)
        elif going_on:
            run.tokens.append(going_on[run.choice])
        else:
            self._scheduler.finish(run)
        return choices

    def _emit(self, key: int, choices: list[ChoiceTokens]) -> Emitted:
        if self._active[key].open_choices:
            return Emitted(key, tuple(choices))
        progress = self._active.pop(key).progress
        progress.ended_ns = time.monotonic_ns()
        return Emitted(key, tuple(choices), progress)

    def _send(self, events: Sequence[Event]) -> None:
        self._report(
            Report(
                tuple(events),
                self._scheduler.stats(),
                self._pool.stats(),
                self._prefilled_tokens,
                self._preemptions,
                self._pool.take_changes(),
            )
        )
