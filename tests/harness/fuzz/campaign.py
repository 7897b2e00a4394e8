"""Thousands of hostile calls against running servers; what they did wrong is collected, not raised."""

import asyncio
import collections
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.harness.fuzz.attempts import Attempt, draw_attempt, perform
from tests.harness.fuzz.messages import MessageFuzzer
from tests.harness.fuzz.methods import Method
from tests.harness.fuzz.values import Harvest

CONCURRENCY = 24
MAX_FINDINGS = 20

Seeds = Mapping[str, Callable[[random.Random], Any]]
"""Good requests by method name; a method that has none is called with what its descriptor allows."""


@dataclass
class Report:
    """What came of a campaign: calls by method and status, and every fault with the call that found it."""

    codes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Calls that were made."""
        return self.codes.total()

    def methods_that_said(self, code: str) -> set[str]:
        """Methods that ended a call with this status."""
        return {method for method, said in self.codes if said == code}


class Campaign:
    """Draws calls from `seed` alone; call number i is the same in every run, what servers answered before it aside."""

    def __init__(self, methods: Sequence[Method], seeds: Seeds, harvest: Harvest, seed: int) -> None:
        self._methods = methods
        self._seeds = seeds
        self._harvest = harvest
        self._seed = seed
        self._numbers = itertools.count()
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def run(self, count: int) -> Report:
        """Makes so many calls, some of them at the same time."""
        report = Report()
        numbers = iter(range(count))
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        for address in {method.address for method in self._methods}:
            self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(self._work(numbers, report))
        finally:
            await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        return report

    async def _work(self, numbers: Any, report: Report) -> None:
        for _ in numbers:
            number = next(self._numbers)
            attempt = self._draw(random.Random(f"{self._seed}/{number}"))
            outcome = await perform(self._channels[attempt.method.address], attempt, self._harvest)
            report.codes[attempt.method.path, outcome.code] += 1
            if not outcome.is_expected and len(report.findings) < MAX_FINDINGS:
                report.findings.append(f"call {number}: {outcome.code} {outcome.details!r} from {attempt}")

    def _draw(self, rng: random.Random) -> Attempt:
        # By path first: what every process serves would be called most otherwise.
        path = rng.choice(sorted({method.path for method in self._methods}))
        method = rng.choice([method for method in self._methods if method.path == path])
        fuzzer = MessageFuzzer(rng, self._harvest)
        message = method.request()
        make = self._seeds.get(method.name)
        if make is None or rng.random() < 0.15:
            fuzzer.fill(message)
        else:
            message.CopyFrom(make(rng))
            for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 4))):
                fuzzer.mutate(message)
        return draw_attempt(rng, method, fuzzer.bytes_of(message))
