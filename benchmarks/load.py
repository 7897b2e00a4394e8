"""Sends planned requests and takes the time of every token.

Open loop: each request leaves at its planned time, whatever became of the others; how late it really left is recorded.
Closed loop: a fixed number is under way, each followed by the next. A failed request is counted, never repeated.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.answers import Answers, Told
from benchmarks.plan import Plan, Planned
from services.common.errors import BatonError
from services.common.types import StageTimes, Usage

WRONG_LENGTH = "WrongLength"


@dataclass(frozen=True, slots=True)
class Timing:
    """One completed request: when it was sent and each token came, in seconds since its run began.

    `lag` is how much later than planned it was sent; `colocated` tells that one worker ran it all, `hedged` that a
    second one was tried.
    """

    sent: float
    tokens: tuple[float, ...]
    stages: StageTimes
    usage: Usage = field(default_factory=Usage)
    lag: float = 0.0
    colocated: bool = False
    hedged: bool = False


@dataclass(slots=True)
class Run:
    """Everything that came of a plan: `errors` counts failed requests by class, `ended` is when the last one ended."""

    timings: list[Timing] = field(default_factory=list[Timing])
    errors: Counter[str] = field(default_factory=Counter[str])
    ended: float = 0.0


class Load:
    """Sends plans with their prompts to one target."""

    def __init__(self, answers: Answers, timeout_s: float) -> None:
        self._answers = answers
        self._timeout_s = timeout_s

    async def run(self, plan: Plan, prompts: Sequence[Sequence[int]], on_end: Callable[[], None]) -> Run:
        """Sends everything and returns once every request has ended; `on_end` is called after each."""
        run = Run()
        began = time.monotonic()
        waiting = iter(zip(plan.requests, prompts, strict=True))
        one = _One(self._answers, self._timeout_s, run, began, on_end)
        async with asyncio.TaskGroup() as group:
            if plan.concurrency is None:
                for planned, prompt in waiting:
                    group.create_task(one.at_its_time(planned, prompt))
            else:
                for _ in range(plan.concurrency):
                    group.create_task(one.after_another(waiting))
        run.ended = time.monotonic() - began
        return run


@dataclass(frozen=True, slots=True)
class _One:
    """Sends one request of a run and notes what came of it."""

    answers: Answers
    timeout_s: float
    run: Run
    began: float
    on_end: Callable[[], None]

    async def at_its_time(self, planned: Planned, prompt: Sequence[int]) -> None:
        await asyncio.sleep(max(0.0, self.began + planned.arrival_s - time.monotonic()))
        await self._send(planned, prompt, time.monotonic() - self.began - planned.arrival_s)

    async def after_another(self, waiting: Iterator[tuple[Planned, Sequence[int]]]) -> None:
        for planned, prompt in waiting:
            await self._send(planned, prompt, 0.0)

    async def _send(self, planned: Planned, prompt: Sequence[int], lag: float) -> None:
        sent = time.monotonic()
        tokens: list[float] = []
        told: Told | None = None
        try:
            async for piece in self.answers.ask(prompt, planned.output_tokens, sent + self.timeout_s):
                tokens += [time.monotonic() - self.began] * piece.num_tokens
                told = piece.told or told
        except BatonError as error:
            self.run.errors[type(error).__name__] += 1
        else:
            if told is not None and len(tokens) == planned.output_tokens:
                marks = (told.colocated, told.hedged)
                timing = Timing(sent - self.began, tuple(tokens), told.stages, told.usage, lag, *marks)
                self.run.timings.append(timing)
            else:
                self.run.errors[WRONG_LENGTH] += 1
        self.on_end()
