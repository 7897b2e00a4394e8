"""Sends planned requests to a frontend and takes the time of every token.

Open loop: each request leaves at its planned time, whatever became of the others; how late it really left is recorded.
Closed loop: a fixed number is under way, each followed by the next. A failed request is counted, never repeated.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.plan import Plan, Planned
from services.common.errors import BatonError
from services.common.sampling import SamplingParams
from services.common.types import StageTimes, Usage
from services.frontend.client import GenerationClient
from services.frontend.request import Completion, GenerationRequest, TokenPrompt

WRONG_LENGTH = "WrongLength"


@dataclass(frozen=True, slots=True)
class Timing:
    """One completed request: when it was sent and each token came, in seconds since its run began.

    `lag` is how much later than planned it was sent; `colocated` tells that one worker ran it all.
    """

    sent: float
    tokens: tuple[float, ...]
    stages: StageTimes
    usage: Usage = field(default_factory=Usage)
    lag: float = 0.0
    colocated: bool = False


@dataclass(slots=True)
class Run:
    """Everything that came of a plan: `errors` counts failed requests by class, `ended` is when the last one ended."""

    timings: list[Timing] = field(default_factory=list[Timing])
    errors: Counter[str] = field(default_factory=Counter[str])
    ended: float = 0.0


class Load:
    """Sends a plan with its prompts through one client; `on_end` is called after each request."""

    def __init__(self, client: GenerationClient, timeout_s: float, on_end: Callable[[], None]) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._on_end = on_end

    async def run(self, plan: Plan, prompts: Sequence[Sequence[int]]) -> Run:
        """Sends everything and returns once every request has ended."""
        run = Run()
        began = time.monotonic()
        waiting = iter(zip(plan.requests, prompts, strict=True))
        async with asyncio.TaskGroup() as group:
            if plan.concurrency is None:
                for planned, prompt in waiting:
                    group.create_task(self._at_its_time(run, planned, prompt, began))
            else:
                for _ in range(plan.concurrency):
                    group.create_task(self._one_by_one(run, waiting, began))
        run.ended = time.monotonic() - began
        return run

    async def _at_its_time(self, run: Run, planned: Planned, prompt: Sequence[int], began: float) -> None:
        await asyncio.sleep(max(0.0, began + planned.arrival_s - time.monotonic()))
        lag = time.monotonic() - began - planned.arrival_s
        await self._one(run, planned, prompt, began, lag)

    async def _one_by_one(self, run: Run, waiting: Iterator[tuple[Planned, Sequence[int]]], began: float) -> None:
        for planned, prompt in waiting:
            await self._one(run, planned, prompt, began, 0.0)

    async def _one(self, run: Run, planned: Planned, prompt: Sequence[int], began: float, lag: float) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=planned.output_tokens, ignore_eos=True)
        sent = time.monotonic()
        request = GenerationRequest(
            request_id="", prompt=TokenPrompt(tuple(prompt)), sampling=sampling, deadline=sent + self._timeout_s
        )
        tokens: list[float] = []
        completion: Completion | None = None
        try:
            async for output in self._client.generate(request):
                now = time.monotonic() - began
                tokens += [now for delta in output.deltas for _ in delta.tokens]
                completion = output.completion or completion
        except BatonError as error:
            run.errors[type(error).__name__] += 1
        else:
            if completion is not None and len(tokens) == planned.output_tokens:
                told = (completion.stages, completion.usage)
                run.timings.append(Timing(sent - began, tuple(tokens), *told, lag, completion.colocated))
            else:
                run.errors[WRONG_LENGTH] += 1
        self._on_end()
