"""Plays a scenario on a cluster and writes down the evidence.

    warm up · look · pause · blockers · subjects reach the phase · companions · FAULT · go on · all end · rest · look

New requests are tried from the fault on, until one succeeds.
"""

import asyncio
import time
from typing import Any

from services.common.errors import BatonError
from services.common.priority import Priority
from services.common.sampling import SamplingParams
from tests.fault.checks import GRACE_S, RECOVERY_S, complaints, owns
from tests.fault.clients import Asking, Clients
from tests.fault.evidence import OK, Evidence, Part, ProcessState, Record
from tests.fault.scenario import Cluster, Load, Scenario

# Generous: what runs on busy cores is waited for by condition, and judged by the clock of its requests.
REACH_S = 30.0
LOOK_S = 0.02
LONGEST_LOOK_S = 0.5
PROBE_EVERY_S = 0.25
PROBE_S = 30.0
PROBE_TOKENS = 4
MOST_BLOCKERS, BLOCKER_EVERY_S = 12, 0.5
SHOWN = ("live_requests", "tickets", "loading", "engine_steps", "source_sent_messages")
WARM_UP_S = 30.0


class Scene:
    """One scenario while it runs; see `scenario.Scene`."""

    def __init__(self, scenario: Scenario, cluster: Cluster, first_number: int = 0) -> None:
        self.cluster = cluster
        self.holders: set[str] = set()
        self.evidence = Evidence(is_timing_exact=cluster.is_timing_exact, is_timing_judged=cluster.is_timing_judged)
        self.clients = Clients(cluster, first_number)
        self._scenario = scenario
        self._recovering: asyncio.Task[None] | None = None
        self._is_faulting = True

    def did(self, *victims: str) -> None:
        """See `scenario.Scene`."""
        self.evidence.faulted_at = time.monotonic()
        self.evidence.victims |= set(victims)
        if self._recovering is None:
            self._recovering = asyncio.create_task(self._recover())

    def touch(self, *victims: str) -> None:
        """See `scenario.Scene`."""
        self.evidence.victims |= set(victims)

    def withdraw(self, *records: Record) -> None:
        """See `scenario.Scene`."""
        for record in records or self._of(Part.SUBJECT):
            self.clients.withdraw(record)

    async def ended(self, part: Part) -> None:
        """See `scenario.Scene`."""
        await self.clients.wait(*self._of(part))

    async def run(self) -> Evidence:
        """Plays it all."""
        evidence, cluster = self.evidence, self.cluster
        await self._warm_up()
        await self._rest()
        evidence.before = await self._look_at_all()
        ended, unready = len(cluster.ended()), len(cluster.unready())
        started = time.monotonic()
        await self._reach()
        evidence.reached_after_s = time.monotonic() - started
        self.ask(Part.COMPANION, self._scenario.load.companions)
        await self._companions_run()
        evidence.touched |= cluster.paused()
        if self._scenario.phase.is_passed:
            cluster.resume()
        await self._scenario.fault(self)
        self._is_faulting = False
        evidence.touched |= cluster.paused()
        cluster.resume()
        assert self._recovering is not None, "the fault did not say when it was done"
        await self._recovering
        await self.clients.wait(*self.clients.records)
        evidence.rested_after_s = await self._rest()
        evidence.after = await self._look_at_all()
        evidence.ended = cluster.ended()[ended:]
        evidence.unready = set(cluster.unready()[unready:])
        evidence.records = [record for record in self.clients.records if record.part is not Part.WARM_UP]
        evidence.is_timing_judged &= cluster.is_timing_judged
        return evidence

    async def close(self) -> None:
        """Ends whatever still runs."""
        if self._recovering is not None:
            self._recovering.cancel()
            await asyncio.gather(self._recovering, return_exceptions=True)
        await self.clients.close()

    async def _warm_up(self) -> None:
        """Every frontend has served."""
        deadline = time.monotonic() + WARM_UP_S
        for frontend in self.cluster.names("frontend"):
            record = self._ask_one(Part.WARM_UP, frontend)
            await self.clients.wait(record)
            while record.status != OK:
                assert time.monotonic() < deadline, f"{frontend} never served: {record.error} {record.message}"
                await asyncio.sleep(LOOK_S)
                record = self._ask_one(Part.WARM_UP, frontend)
                await self.clients.wait(record)

    async def _reach(self) -> None:
        """Brings the subjects into the phase."""
        phase, load = self._scenario.phase, self._scenario.load
        if phase.pause is not None:
            self.cluster.pause(phase.pause)
        if phase.is_blocked and phase.pause is not None:
            await self._block(self.cluster.names(phase.pause.tier))
        before = await self._look_at_all()
        deadline = time.monotonic() + REACH_S
        self.ask(Part.SUBJECT, load.subjects)
        while not self.holders:
            now = await self._look()
            self.holders = phase.victims(before, now, self.cluster.paused())
            counts = {
                name: {key: state.counts.get(key) for key in SHOWN} for name, state in now.items() if state.counts
            }
            assert time.monotonic() < deadline, f"{self._scenario.title} was never reached: {counts}"
            await asyncio.sleep(LOOK_S)

    async def _block(self, workers: list[str]) -> None:
        """Sends requests until each of these workers stands still with one, so that whatever comes next has to wait."""
        started = time.monotonic()
        sent = 0
        while not self.cluster.paused() >= set(workers):
            waited_s = time.monotonic() - started
            assert waited_s < REACH_S, f"{self._scenario.title}: of {workers} stand still {self.cluster.paused()} alone"
            if sent < min(MOST_BLOCKERS, 1 + waited_s // BLOCKER_EVERY_S):
                self.ask(Part.BLOCKER)
                sent += 1
            await asyncio.sleep(LOOK_S)

    async def _companions_run(self) -> None:
        """Waits until one of them gets tokens, where there are any that can."""
        companions = self._of(Part.COMPANION)
        for _ in range(50):
            if not companions or any(len(record.arrivals) > 2 or record.ended for record in companions):
                return
            await asyncio.sleep(LOOK_S)

    async def _recover(self) -> None:
        """Asks again and again until a request that began after the fault has succeeded."""
        evidence, asked = self.evidence, list[Record]()
        while evidence.recovered_at is None and (
            self._is_faulting or time.monotonic() < evidence.faulted_at + RECOVERY_S + GRACE_S
        ):
            asked.append(self._ask_one(Part.PROBE))
            await asyncio.sleep(PROBE_EVERY_S)
            fresh = (record for record in asked if record.status == OK and record.started >= evidence.faulted_at)
            evidence.recovered_at = min((record.ended or 0.0 for record in fresh), default=None)

    async def _rest(self) -> float | None:
        """Waits until nobody owns anything of a request; how long that took, None where it did not come."""
        started = time.monotonic()
        limit = self.evidence.rest_limit_s = self.cluster.lease_s + GRACE_S
        pause_s = LOOK_S
        while time.monotonic() - started <= limit:
            states = await self._look()
            if states.keys() >= set(self.cluster.names()) and not any(owns(state) for state in states.values()):
                return time.monotonic() - started
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)
        return None

    async def _look_at_all(self) -> dict[str, ProcessState]:
        """A look at which every process has answered; on a busy machine one may not, at the first time."""
        deadline = time.monotonic() + REACH_S
        while True:
            states = await self._look()
            if not (silent := set(self.cluster.names()) - states.keys()):
                return states
            assert time.monotonic() < deadline, f"{self._scenario.title}: {sorted(silent)} tell nothing of themselves"
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> dict[str, ProcessState]:
        names = self.cluster.names()
        found = await asyncio.gather(*(self.cluster.state(name) for name in names), return_exceptions=True)
        for state in found:
            if isinstance(state, BaseException) and not isinstance(state, BatonError | OSError):
                raise state
        return {name: state for name, state in zip(names, found, strict=True) if isinstance(state, ProcessState)}

    def ask(self, part: Part, count: int = 1, priority: Priority = Priority.NORMAL) -> list[Record]:
        """See `scenario.Scene`."""
        return [self.clients.ask(part, self._asking(part, priority)) for _ in range(count)]

    def _ask_one(self, part: Part, frontend: str = "") -> Record:
        return self.clients.ask(part, self._asking(part), frontend)

    def _asking(self, part: Part, priority: Priority = Priority.NORMAL) -> Asking:
        load = self._scenario.load
        is_short = part in (Part.PROBE, Part.WARM_UP)
        deadline_s = PROBE_S if is_short else load.subject_deadline_s if part is Part.SUBJECT else load.deadline_s
        return Asking(
            sampling=_sampling(load, PROBE_TOKENS if is_short else load.max_tokens),
            prompt_tokens=load.prompt_tokens,
            deadline_s=deadline_s,
            priority=priority,
        )

    def _of(self, part: Part) -> list[Record]:
        return [record for record in self.clients.records if record.part is part]


async def play(scenario: Scenario, cluster: Cluster, first_number: int = 0) -> Evidence:
    """Plays a scenario; the cluster is as it was afterwards, except for victims that are gone."""
    scene = Scene(scenario, cluster, first_number)
    try:
        return await scene.run()
    finally:
        cluster.resume()
        await scene.close()


def judge(scenario: Scenario, evidence: Evidence) -> None:
    """Fails with everything that is wrong."""
    found = complaints(evidence, scenario.expect)
    assert not found, scenario.title + "\n  " + "\n  ".join(found)


def _sampling(load: Load, max_tokens: int) -> SamplingParams:
    values: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **load.sampling}
    return SamplingParams(**values)
