"""A cluster of workers in virtual time, routed by the real router: to see what a policy does to whole loads.

A prefill worker computes one prompt after another at its speed and keeps what it computed; a decode worker runs a
request in each slot, one token a step. Load reports come every 100 ms, as in a real cluster, so the router sees the
past. Deterministic: all randomness is in the load that a test makes.
"""

import dataclasses
import heapq
import itertools
import statistics
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.common.block_hash import hash_chain, short_hash
from services.common.types import Load, Tier
from services.frontend.in_flight import InFlight
from services.frontend.router import Route, Router
from services.frontend.routing.candidate import Candidate, Snapshot
from services.frontend.routing.ejection import EjectionRules, Ejections
from services.frontend.routing.need import Need
from services.frontend.routing.policies import PolicyChoice
from services.frontend.routing.prefix import Prefix
from services.frontend.routing.slow_start import SlowStart
from tests.harness.candidates import LAYOUT, worker

REPORT_S = 0.1
MAX_TRIES = 4


@dataclass(frozen=True)
class Arrival:
    """A request of a load."""

    at: float
    prompt: Sequence[int]
    output: int = 1
    session: str = ""


@dataclass
class SimWorker:
    """A worker; `speed` is prompt tokens or steps in a second, at an age in seconds; no `cache_blocks`: no cache."""

    name: str
    tier: Tier
    speed: Callable[[float], float]
    weight: float = 1.0
    joins_at: float = 0.0
    slots: int = 8
    cache_blocks: int = 0
    fails: Callable[[float], bool] = lambda _: False
    sent: InFlight = field(default_factory=InFlight)
    load: Load = dataclasses.field(default_factory=lambda: Load(free_blocks=4000, total_blocks=4000))
    queue: deque["_Job"] = field(default_factory=deque)
    running: int = 0
    known: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def report(self) -> None:
        """What the worker would say of itself now."""
        waiting = sum(len(job.arrival.prompt) for job in self.queue) if self.tier is Tier.PREFILL else 0
        self.load = Load(
            waiting_requests=len(self.queue),
            running_requests=self.running,
            outstanding_tokens=waiting,
            free_blocks=4000 - self.running,
            total_blocks=4000,
        )
        self.sent.reported()

    def cached(self, chain: Sequence[int]) -> int:
        """Blocks of a prompt that are in the cache."""
        return sum(1 for _ in itertools.takewhile(self.known.__contains__, chain))

    def keep(self, chain: Sequence[int]) -> None:
        """Enters a prompt into the cache; the least recently used blocks leave it."""
        for digest in chain:
            self.known.pop(digest, None)
            self.known[digest] = None
        while len(self.known) > self.cache_blocks:
            self.known.popitem(last=False)


@dataclass
class _Job:
    arrival: Arrival
    tries: int = 0
    route: Route = field(default_factory=Route)
    avoided: set[str] = field(default_factory=set)
    ttft: float = 0.0


@dataclass
class Result:
    """How a load went. Times in seconds; `computed` prompt tokens were not in a cache; `picks` in order of time."""

    ttft: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    picks: list[tuple[float, str]] = field(default_factory=list)
    computed: int = 0
    failures: int = 0
    lost: int = 0
    busiest: Counter[str] = field(default_factory=Counter)

    def share(self, name: str, start: float = 0.0, end: float = float("inf")) -> float:
        """Share of the picks of its tier that a worker got between two moments."""
        tier = name.rstrip("0123456789")
        picks = [each for at, each in self.picks if start <= at < end and each.rstrip("0123456789") == tier]
        return picks.count(name) / max(1, len(picks))

    @property
    def mean_ttft(self) -> float:
        """Mean time to the first token."""
        return statistics.fmean(self.ttft)

    @property
    def p99_ttft(self) -> float:
        """Time to the first token that 1 % exceed."""
        return statistics.quantiles(self.ttft, n=100)[98]


class Simulation:
    """Runs one load over one set of workers under one choice of policies."""

    def __init__(
        self,
        workers: Sequence[SimWorker],
        choice: PolicyChoice,
        *,
        rules: EjectionRules = EjectionRules(),  # noqa: B008 - frozen
        slow_start: SlowStart = SlowStart(),  # noqa: B008 - frozen
    ) -> None:
        self._workers = {each.name: each for each in sorted(workers, key=lambda each: each.name)}
        self._router = Router(choice)
        self._ejections = Ejections(rules)
        self._slow_start = slow_start
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._open = 0
        self.result = Result()

    def run(self, arrivals: Sequence[Arrival]) -> Result:
        """Plays the load to its end."""
        self._open = len(arrivals)
        for arrival in arrivals:
            self._at(arrival.at, lambda arrival=arrival: self._route(_Job(arrival)))
        self._at(0.0, self._report)
        while self._open:
            self._now, _, act = heapq.heappop(self._events)
            act()
        return self.result

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _report(self) -> None:
        for each in self._workers.values():
            each.report()
        self._at(self._now + REPORT_S, self._report)

    def _snapshot(self) -> Snapshot:
        there = [each for each in self._workers.values() if each.joins_at <= self._now]
        out = self._ejections.out({each.name: each.tier for each in there}, self._now)
        return Snapshot(
            candidates=tuple(self._candidate(each) for each in there),
            ejected=frozenset(each for each in out if isinstance(each, str)),
        )

    def _candidate(self, each: SimWorker) -> Candidate:
        since = max(each.joins_at, self._ejections.readmitted_at(each.name))
        return Candidate(
            worker=dataclasses.replace(
                worker(each.tier, each.name, max_model_len=10**6, total_blocks=4000, weight=each.weight),
                max_num_seqs=each.slots,
            ),
            load=each.load,
            unfinished=each.sent.unfinished,
            unreported=each.sent.unreported,
            ramp=self._slow_start.ramp(self._now - since),
            known_blocks=each.known.keys(),
        )

    def _route(self, job: _Job) -> None:
        arrival = job.arrival
        need = Need(
            prompt_tokens=len(arrival.prompt),
            is_first_token_last=arrival.output == 1,
            avoided=frozenset(job.avoided),
            session_id=arrival.session,
            prefix=Prefix(arrival.prompt),
        )
        job.route = self._router.pick(need, self._snapshot())
        for part in filter(None, (job.route.prefill, job.route.decode)):
            self._workers[part.worker_id].sent.begin(len(arrival.prompt), job.route.cached[part.worker_id])
            self._ejections.began(part.worker_id, self._now)
            self.result.picks.append((self._now, part.worker_id))
        first = job.route.prefill or job.route.decode
        assert first is not None
        self._submit(self._workers[first.worker_id], job)

    def _submit(self, each: SimWorker, job: _Job) -> None:
        each.queue.append(job)
        busy = len(each.queue) + each.running
        self.result.busiest[each.name] = max(self.result.busiest[each.name], busy)
        self._begin(each)

    def _begin(self, each: SimWorker) -> None:
        while each.queue and each.running < (1 if each.tier is Tier.PREFILL else each.slots):
            job = each.queue.popleft()
            if each.fails(self._now):
                self._fail(each, job)
                continue
            each.running += 1
            lasts_s = self._work(each, job) / each.speed(self._now - each.joins_at)
            self._at(self._now + lasts_s, lambda job=job: self._done(each, job))

    def _work(self, each: SimWorker, job: _Job) -> int:
        """Tokens to compute or steps to run."""
        if each.tier is Tier.DECODE:
            return job.arrival.output
        if not each.cache_blocks:
            self.result.computed += len(job.arrival.prompt)
            return len(job.arrival.prompt)
        chain = [short_hash(digest) for digest in hash_chain(job.arrival.prompt, LAYOUT.block_size)]
        missing = max(1, len(job.arrival.prompt) - each.cached(chain) * LAYOUT.block_size)
        each.keep(chain)
        self.result.computed += missing
        return missing

    def _done(self, each: SimWorker, job: _Job) -> None:
        each.running -= 1
        self._ejections.succeeded(each.name, self._now)
        if each.tier is Tier.PREFILL:
            job.ttft = self._now - job.arrival.at
            self.result.ttft.append(job.ttft)
            self._forget(each, job)
            if job.route.decode is not None:
                self._submit(self._workers[job.route.decode.worker_id], job)
            else:
                self._open -= 1
        else:
            self._forget(each, job)
            self.result.total.append(self._now - job.arrival.at)
            self._open -= 1
        self._begin(each)

    def _fail(self, each: SimWorker, job: _Job) -> None:
        self.result.failures += 1
        self._ejections.failed(each.name, self._now)
        for part in filter(None, (job.route.prefill, job.route.decode)):
            self._forget(self._workers[part.worker_id], job)
        job.tries += 1
        job.avoided.add(each.name)
        if job.tries == MAX_TRIES:
            self.result.lost += 1
            self._open -= 1
        else:
            self._at(self._now + 0.001, lambda: self._route(job))

    def _forget(self, each: SimWorker, job: _Job) -> None:
        each.sent.end(len(job.arrival.prompt), job.route.cached[each.name])
