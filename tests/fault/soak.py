"""Steady load and random faults for minutes: every request ends in time, no token is wrong, nothing grows.

    python -m tests.fault.soak --minutes 30 [--seed 1] [--rate 6] [--churn] [--only "KV hurt"]

This, and `make soak MINUTES=30`, runs on real processes.

Two frontends, two prefill and two decode workers. Faults come one after the other, each at a random moment; the first
process of each role is never killed, so that its footprint tells of the whole run. Every few minutes the load pauses,
everything must come to rest, and footprints are taken. With `--churn` nothing fails: two workers of each tier join and
leave at random, and no request may fail. Which others may is said in `soak_verdict.py`.
"""

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from services.common.errors import BatonError
from services.common.sampling import SamplingParams
from tests.fault.checks import RECOVERY_S, owns, unsettled, wrong_with
from tests.fault.clients import PROMPTS, Asking, Clients, prompt
from tests.fault.evidence import OK, Part, ProcessState, Record
from tests.fault.footprints import growth
from tests.fault.network_faults import random_network_faults
from tests.fault.real_cluster import real_cluster
from tests.fault.scenario import Cluster, Topology
from tests.fault.soak_report import Report
from tests.fault.soak_verdict import FRONTEND_KILLED, KV_HURT
from tests.harness.ordered_faults import UNHURT, HurtOrder

TOPOLOGY = Topology(frontend=2, prefill=2, decode=2, is_proxied=True)
CHURNING = Topology(frontend=1, prefill=1, decode=1)
MOST = 3
PROMPT_TOKENS = 48
MAX_TOKENS = 48
DEADLINE_S = 30.0
PAUSE_S = (4.0, 12.0)
FROZEN_S = (2.0, 10.0)
HURT_SHARE = 0.2
NETWORK_SHARE = 0.4  # of the faults, where there are others
ROUND_S, LEAST_ROUNDS = 120.0, 4
BURST = 24
REST_S = 30.0
PROBE_EVERY_S = 0.5
# So many requests at once take longer than one, whatever the fault.
LOADS = ("burst",)
Faults = dict[str, Callable[[], Awaitable[None]]]


class Soak:
    """One run on one cluster, real or simulated."""

    def __init__(self, cluster: Cluster, seed: int, rate: float, *, is_churn: bool = False, only: str = "") -> None:
        self.report = Report()
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._every_s = 1 / rate
        self._clients = Clients(cluster)
        self._prompts = [prompt(number, PROMPT_TOKENS) for number in range(PROMPTS)]
        self._is_loading = asyncio.Event()
        self._away: set[str] = set()
        self._struck: set[str] = set()  # by the fault that goes on
        self._asked_to_end = Counter[tuple[str, int | None]]()
        self._is_churn = is_churn
        faults = self._joins() if is_churn else self._all_faults()
        network = {} if is_churn else random_network_faults(cluster, self._chance, self._strike)
        self._faults = {name: fault for name, fault in (faults | network).items() if only in name}
        self._others, self._network = (sorted(self._faults.keys() & some.keys()) for some in (faults, network))

    async def run(self, seconds: float) -> Report:
        """Runs for so long; gives the report."""
        until, round_s = time.monotonic() + seconds, min(ROUND_S, seconds / LEAST_ROUNDS)
        loading = asyncio.create_task(self._load())
        try:
            await self._at_rest()
            while time.monotonic() < until:
                await self._round(min(until, time.monotonic() + round_s))
                await self._at_rest()
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await self._clients.close()
        self._judge_all()
        return self.report

    def _all_faults(self) -> Faults:
        cluster = self._cluster
        return {
            "SIGKILL of a prefill worker": lambda: self._replace("prefill-1", cluster.kill),
            "SIGKILL of a decode worker": lambda: self._replace("decode-1", cluster.kill),
            FRONTEND_KILLED: lambda: self._replace("frontend-1", cluster.kill),
            "SIGKILL of the directory": lambda: self._replace("kvtransfer", cluster.kill),
            "SIGTERM of a prefill worker": lambda: self._replace("prefill-1", cluster.terminate),
            "SIGTERM of a decode worker": lambda: self._replace("decode-1", cluster.terminate),
            "SIGTERM of a frontend": lambda: self._replace("frontend-1", cluster.terminate),
            "SIGSTOP of a prefill worker": lambda: self._freeze("prefill-"),
            "SIGSTOP of a decode worker": lambda: self._freeze("decode-"),
            "cancels": self._cancel_many,
            "deadlines": self._expire_many,
            "burst": self._burst,
            KV_HURT: self._hurt,
        }

    def _joins(self) -> Faults:
        return {f"a {role} worker joins or leaves": partial(self._change, role) for role in ("prefill", "decode")}

    async def _change(self, role: str) -> None:
        """A worker of a role joins, or leaves gracefully; its first one stays."""
        names = self._cluster.names(role)
        if len(names) == 1 or (len(names) < MOST and self._chance.random() < 0.5):
            await self._cluster.join(role)
            await self._cluster.routable()
        else:
            await self._end(self._chance.choice(sorted(names)[1:]), self._cluster.terminate)

    async def _round(self, until: float) -> None:
        self._is_loading.set()
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(*PAUSE_S))
            name = self._pick()
            self.report.faults[name] += 1
            strike = self.report.began(name)
            self._struck = strike.victims
            recovering = asyncio.create_task(self._recovery(name))
            await self._faults[name]()
            strike.ended = time.monotonic()
            await recovering
        self._is_loading.clear()

    def _pick(self) -> str:
        """The next fault."""
        if self._network and (not self._others or self._chance.random() < NETWORK_SHARE):
            return self._chance.choice(self._network)
        return self._chance.choice(self._others)

    async def _load(self) -> None:
        while True:
            await self._is_loading.wait()
            self._ask()
            await asyncio.sleep(self._every_s)

    def _ask(self, part: Part = Part.COMPANION, deadline_s: float = DEADLINE_S) -> Record:
        sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
        asking = Asking(
            sampling=sampling,
            prompt_tokens=PROMPT_TOKENS,
            deadline_s=deadline_s,
            prompt=self._chance.choice(self._prompts),
        )
        serving = [name for name in self._cluster.names("frontend") if name not in self._away]
        return self._clients.ask(part, asking, self._chance.choice(serving))

    async def _recovery(self, name: str) -> None:
        """How long after a fault a request that begins after it succeeds; infinity where none does for long."""
        began, is_judged, asked = time.monotonic(), self._cluster.is_timing_judged, list[Record]()
        served: list[float] = []
        while not served and time.monotonic() < began + DEADLINE_S:
            asked.append(self._ask())
            await asyncio.sleep(PROBE_EVERY_S)
            served = [record.ended for record in asked if record.status == OK and record.ended is not None]
        seconds = min(served, default=math.inf) - began
        self.report.recovered_s.setdefault(name, []).append(seconds)
        if name in LOADS:
            return
        if not (is_judged and self._cluster.is_timing_judged):
            self.report.unjudged_times += 1
        elif seconds > RECOVERY_S:
            self.report.complaints.append(f"{name}: a new request succeeded only after {seconds:.2f} s")

    def _strike(self, name: str) -> None:
        """Writes down whom the fault that goes on is done to."""
        self._struck.add(name)

    async def _end(self, name: str, end: Callable[[str], Awaitable[object]]) -> None:
        """Ends a process, which is meant to end so."""
        self._strike(name)
        self._asked_to_end[name, -9 if end == self._cluster.kill else 0] += 1
        await end(name)

    async def _replace(self, name: str, end: Callable[[str], Awaitable[object]]) -> None:
        """Ends a process and starts it again at its address."""
        self._away.add(name)  # clients know of a frontend that leaves, as a load balancer does
        await self._end(name, end)
        await asyncio.sleep(self._chance.uniform(0, 2.0))
        await self._cluster.start(name)
        self._away.discard(name)
        await self._cluster.routable()

    async def _freeze(self, prefix: str) -> None:
        name = self._chance.choice([name for name in self._cluster.names() if name.startswith(prefix)])
        self._strike(name)
        await self._cluster.freeze(name)
        await asyncio.sleep(self._chance.uniform(*FROZEN_S))
        await self._cluster.thaw(name)

    async def _hurt(self) -> None:
        self._cluster.hurt(HurtOrder(share=HURT_SHARE))
        await asyncio.sleep(self._chance.uniform(*FROZEN_S))
        self._cluster.hurt(UNHURT)

    async def _cancel_many(self) -> None:
        records = [self._ask(Part.SUBJECT) for _ in range(BURST)]
        for record in records:
            await asyncio.sleep(self._chance.uniform(0, 0.02))
            self._clients.withdraw(record)

    async def _expire_many(self) -> None:
        for _ in range(BURST):
            self._ask(Part.BLOCKER, self._chance.uniform(0.05, 0.5))

    async def _burst(self) -> None:
        for _ in range(2 * BURST):
            self._ask()

    async def _at_rest(self) -> None:
        """Waits until nothing is left of any request and takes the footprints, always of as many processes."""
        for name in sorted(self._cluster.names("prefill", "decode")) if self._is_churn else ():
            if not name.endswith("-0"):
                await self._end(name, self._cluster.terminate)
        await self._clients.wait(*self._clients.records)
        self._judge()
        until = time.monotonic() + REST_S
        while True:
            states = {name: await self._state(name) for name in self._cluster.names()}
            known = {name: state for name, state in states.items() if state is not None}
            busy = [name for name in states if name not in known or owns(known[name])]
            if not (busy or unsettled(known)) or time.monotonic() > until:
                break
            await asyncio.sleep(0.2)
        left = {name: f"was not at rest: {owns(known[name])}" for name in busy if name in known}
        silent = {name: f"told nothing of itself for {REST_S:g} s" for name in busy if name not in known}
        self.report.complaints += [f"{name} {what}" for name, what in (left | silent).items()]
        self.report.complaints += [f"{name} did not get its channels back" for name in unsettled(known)]
        self.report.footprints.append(known)

    async def _state(self, name: str) -> ProcessState | None:
        try:
            return await self._cluster.state(name)
        except (BatonError, OSError):
            return None

    def _judge(self) -> None:
        """Looks at the requests that have ended since, and forgets them."""
        report, workers = self.report, self._cluster.names("prefill", "decode")
        for record in self._clients.records:
            status = record.status or "nothing"
            kind = {Part.SUBJECT: " (cancelled)", Part.BLOCKER: " (short deadline)"}.get(record.part, "")
            report.ends[status if status == OK else f"{status} {record.error}{kind}"] += 1
            report.moves += record.moves
            if status != OK and record.part is Part.COMPANION:
                report.failed(record)
            for what in wrong_with(record):
                report.complaints.append(f"{record.request_id}: {what}; met {report.meanwhile(record)}")
            report.verdict.judge(record, () if self._is_churn else report.history, workers)
        self._clients.records.clear()

    def _judge_all(self) -> None:
        """Judges the requests together, who ended, and the growth of those that lived, since the first round."""
        self.report.complaints += [*self.report.verdict.complaints, *self.report.verdict.on_the_whole()]
        ended = Counter(self._cluster.ended()) - self._asked_to_end
        self.report.complaints += [f"{name} ended with {code}, which nobody asked for" for name, code in ended]
        self.report.complaints += growth(self.report.footprints)


async def soak(asked: argparse.Namespace) -> Report:
    """Runs on real processes."""
    topology = CHURNING if asked.churn else TOPOLOGY
    with tempfile.TemporaryDirectory() as folder:
        async with real_cluster(topology, Path(folder)) as cluster:
            one = Soak(cluster, asked.seed, asked.rate, is_churn=asked.churn, only=asked.only)
            return await one.run(asked.minutes * 60)


def main() -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--churn", action="store_true", help="workers only join and leave, gracefully")
    parser.add_argument("--only", default="", help="faults with this in their name alone")
    asked = parser.parse_args()
    sys.stdout.write(f"seed {asked.seed}, {asked.minutes:g} minutes, {asked.rate:g} requests a second\n")
    report = asyncio.run(soak(asked))
    sys.stdout.write(report.text() + "\n")
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
