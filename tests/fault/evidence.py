"""What is written down while a scenario runs, and judged afterwards by `checks.py`. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

OK = "OK"


class Part(Enum):
    """What a request is there for."""

    WARM_UP = "warm-up"
    BLOCKER = "blocker"  # stands in the subject's way, so that it waits
    SUBJECT = "subject"  # is in the phase in which the fault comes
    COMPANION = "companion"  # runs beside it
    PROBE = "probe"  # comes after the fault


@dataclass(slots=True, kw_only=True)
class Record:
    """One request as its client saw it; times are monotonic seconds of the cluster's clock.

    `status` is OK or the name of a gRPC code, `error` the class of a typed error; `arrivals` has a time for each
    message with tokens. `workers` served its last route.
    """

    request_id: str
    part: Part
    frontend: str
    started: float
    deadline: float
    expected: Mapping[int, list[int]]
    ended: float | None = None
    status: str = ""
    error: str = ""
    message: str = ""
    is_withdrawn: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    gap: str = ""
    retry_after_s: float | None = None
    moves: int = 0
    workers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One process at one moment: `counts` of what it owns and has done, samples of its metrics, and its footprint."""

    incarnation: str
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    descriptors: int = 0
    threads: int = 0
    memory_bytes: int = 0


Snapshot = Mapping[str, ProcessState]


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Everything that a run of a scenario left behind.

    `victims` are the processes that the fault was done to, `touched` those that stood still with the subject, `ended`
    those that ended with their exit code (negative: a signal), `unready` those that were seen not serving. The subjects
    were in the phase `reached_after_s` seconds after the first request that was sent to get them there. `faulted_at`
    is when the fault was done, `recovered_at` when the first request that began after it had succeeded.
    `is_timing_exact` is True on virtual time; where `is_timing_judged` is False, the machine was too busy to say
    anything about seconds.
    """

    records: list[Record] = field(default_factory=list)
    victims: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    before: Snapshot = field(default_factory=dict)
    after: Snapshot = field(default_factory=dict)
    ended: list[tuple[str, int | None]] = field(default_factory=list)
    unready: set[str] = field(default_factory=set)
    reached_after_s: float = 0.0
    faulted_at: float = 0.0
    recovered_at: float | None = None
    rested_after_s: float | None = None
    rest_limit_s: float = 0.0
    is_timing_exact: bool = False
    is_timing_judged: bool = True

    def of(self, part: Part) -> list[Record]:
        """The requests of one part."""
        return [record for record in self.records if record.part is part]

    def moved(self, sample: str) -> float:
        """By how much a sample of a metric, or a worker's count, grew over all processes that live on."""
        return sum(
            _value(state, sample) - _value(self.before[name], sample)
            for name, state in self.after.items()
            if name in self.before and self.before[name].incarnation == state.incarnation
        )


def _value(state: ProcessState, sample: str) -> float:
    return state.metrics.get(sample, state.counts.get(sample, 0))
