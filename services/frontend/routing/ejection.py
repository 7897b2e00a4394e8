"""Takes workers that keep failing out of routing, for a time that grows, and lets them back by a single request. Pure.

    healthy ──failures in a row, or too large a share of them──▶ ejected ──time is up──▶ on probation
       ▲                                                            ▲                       │  one request at a time
       └───────────────────────── success ──────────────────────────┼───────────────────────┤
                                                                    └── failure, for longer ┘

Whatever fails under a name of its own is judged alone: a worker, or a pair of workers between which no KV arrives.
At most a share of a tier (of all pairs) is kept out, the longest ejected first, and never all of it. Clock: seconds,
passed in. Source: Envoy's outlier detection.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.types import Tier

# A worker's id, or a pair (prefill id, decode id).
Suspect = str | tuple[str, str]

_PAIRS = "pairs"
_NOBODY = "nobody"
_BUCKETS = 10
# A request on probation that has not ended after so long lets another one try.
_PROBE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EjectionRules:
    """When and for how long.

    Attributes:
        failures: in a row that eject; 0 turns ejections off.
        failure_rate: share of failed requests over `window_s` seconds that ejects, where there were `least_requests`.
        first_s: seconds of the first ejection; each that follows takes twice as long, up to `longest_s`.
        most_share: of a tier that may be out at once; of two or more one always may, the last one never.
    """

    failures: int = 5
    failure_rate: float = 0.5
    window_s: float = 30.0
    least_requests: int = 20
    first_s: float = 5.0
    longest_s: float = 120.0
    most_share: float = 0.5


@dataclass(slots=True)
class _Record:
    in_a_row: int = 0
    window: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    until: float = 0.0
    probe_until: float = 0.0
    times: int = 0
    readmitted_at: float = -math.inf


class Ejections:
    """Keeps a record for each suspect that has been tried; `leave` forgets it. Thread: one."""

    def __init__(self, rules: EjectionRules) -> None:
        self._rules = rules
        self._records: dict[Suspect, _Record] = {}
        self._ejected: dict[Suspect, _Record] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Ejections since the start."""
        return self._count

    def out(self, live: Mapping[str, Tier], now: float) -> frozenset[Suspect]:
        """Who gets nothing now: ejected, or on probation with its request still running.

        `live` has the tier of every worker that could be routed to.
        """
        ejected = list(self._ejected.items())  # oldest first
        waiting = [suspect for suspect, record in ejected if now < max(record.until, record.probe_until)]
        if not waiting:
            return frozenset()
        sizes = Counter[Tier | str](live.values())
        sizes[_PAIRS] = sizes[Tier.PREFILL] * sizes[Tier.DECODE]
        room = {group: self._most(size) for group, size in sizes.items()}
        found: set[Suspect] = set()
        for suspect in waiting:
            group = _group(suspect, live)
            if room.get(group, 0) > 0:
                room[group] -= 1
                found.add(suspect)
        return frozenset(found)

    def began(self, suspect: Suspect, now: float) -> None:
        """A request was sent to it."""
        record = self._ejected.get(suspect)
        if record is not None and now >= record.until:
            record.probe_until = now + _PROBE_S

    def succeeded(self, suspect: Suspect, now: float) -> None:
        """A request ended well there; nothing that began before an ejection ends it early."""
        if not self._rules.failures:
            return
        record = self._records.setdefault(suspect, _Record())
        if suspect not in self._ejected:
            record.in_a_row = 0
            self._note(record, now, is_failure=False)
        elif now >= record.until:
            del self._ejected[suspect]
            record.readmitted_at = now
            record.in_a_row = 0
            record.window.clear()

    def failed(self, suspect: Suspect, now: float) -> bool:
        """A request failed there through its fault; True where that ejects it."""
        if not self._rules.failures:
            return False
        record = self._records.setdefault(suspect, _Record())
        if suspect in self._ejected:
            return now >= record.until and self._eject(suspect, record, now)
        record.in_a_row += 1
        self._note(record, now, is_failure=True)
        is_out = record.in_a_row >= self._rules.failures or self._fails_too_often(record)
        return is_out and self._eject(suspect, record, now)

    def restarted(self, worker_id: str, now: float) -> None:
        """Another incarnation: what the old one did is not held against it, but how often it was ejected is."""
        for suspect in self._of(worker_id):
            self._ejected.pop(suspect, None)
            self._records[suspect] = _Record(times=self._records[suspect].times, readmitted_at=now)

    def left(self, worker_id: str) -> None:
        """The worker is gone; it and its pairs are forgotten."""
        for suspect in self._of(worker_id):
            del self._records[suspect]
            self._ejected.pop(suspect, None)

    def readmitted_at(self, suspect: Suspect) -> float:
        """When its last ejection ended; minus infinity where it never was ejected."""
        record = self._records.get(suspect)
        return record.readmitted_at if record is not None else -math.inf

    def ejected(self) -> tuple[Suspect, ...]:
        """Who is ejected or on probation, used or not; oldest first. Thread: any."""
        return tuple(self._ejected)

    def stats(self) -> dict[str, int]:
        """Records that are kept."""
        return {"ejection_records": len(self._records)}

    def _of(self, worker_id: str) -> list[Suspect]:
        return [each for each in self._records if each == worker_id or (isinstance(each, tuple) and worker_id in each)]

    def _most(self, size: int) -> int:
        return min(size - 1, max(1, int(size * self._rules.most_share))) if size > 1 else 0

    def _eject(self, suspect: Suspect, record: _Record, now: float) -> bool:
        """Ejects for longer than before; what it was ejected for is forgiven with time spent healthy."""
        rules = self._rules
        healthy_s = 0.0 if self._ejected.pop(suspect, None) else now - record.readmitted_at
        record.times = record.times + 1 if healthy_s < rules.longest_s else 1
        self._ejected[suspect] = record
        record.until = now + min(rules.longest_s, rules.first_s * 2.0 ** min(record.times - 1, 62))
        record.probe_until = 0.0
        record.in_a_row = 0
        record.window.clear()
        self._count += 1
        return True

    def _note(self, record: _Record, now: float, *, is_failure: bool) -> None:
        """Counts into the bucket of this moment and drops buckets older than the window."""
        place = math.floor(now / self._rules.window_s * _BUCKETS)
        window = [bucket for bucket in record.window if bucket[0] > place - _BUCKETS]
        good, bad = window.pop()[1:] if window and window[-1][0] == place else (0, 0)
        record.window = [*window, (place, good + (not is_failure), bad + is_failure)]

    def _fails_too_often(self, record: _Record) -> bool:
        bad = sum(bucket[2] for bucket in record.window)
        total = bad + sum(bucket[1] for bucket in record.window)
        return total >= self._rules.least_requests and bad >= self._rules.failure_rate * total


def _group(suspect: Suspect, live: Mapping[str, Tier]) -> Tier | str:
    """What the suspect is one of; of nothing where it is not there."""
    if isinstance(suspect, str):
        return live.get(suspect, _NOBODY)
    return _PAIRS if all(each in live for each in suspect) else _NOBODY
