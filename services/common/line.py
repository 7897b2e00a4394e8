"""Who holds one of a bounded number of places, who waits for one, and who is turned away. Pure: the clock is passed in.

    arrive ──place free──▶ ADMITTED ──leave──▶ gone
       └──▶ waiting ──place free──▶ ADMITTED
               ├── line full, and last in it ──▶ FULL (the newcomer) or DISPLACED (who waited already)
               ├── waited longer than the TTL ──▶ EXPIRED
               └── leave ──▶ gone, without a verdict

The line is ordered by `rank`: by arrival within a class, with aging between classes. A full line keeps the best: a
newcomer takes the place of the last one where it comes before it. Every arrival gets exactly one verdict, unless it
leaves first.
"""

import bisect
import enum
from dataclasses import dataclass

from services.common.displacement import turned_away
from services.common.drain_rate import DrainRate
from services.common.priority import Priority, rank


class Verdict(enum.Enum):
    """What becomes of an arrival; all but the first are reasons for turning it away."""

    ADMITTED = "admitted"
    FULL = "full"
    DISPLACED = "displaced"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineLimits:
    """`places` may be held at once, `max_waiting` may wait, each for `ttl_s` seconds; see `rank` for `aging_s`."""

    places: int
    max_waiting: int
    ttl_s: float
    aging_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One verdict; `waited_s` is how long it took."""

    key: int
    priority: Priority
    verdict: Verdict
    waited_s: float


@dataclass(frozen=True, slots=True)
class _Waiter:
    key: int
    priority: Priority
    count: int
    arrived_at: float
    rank: float

    def outcome(self, verdict: Verdict, now: float) -> Outcome:
        return Outcome(self.key, self.priority, verdict, now - self.arrived_at)


class Line:
    """Keys are the caller's; one that is in the line or holds a place must not arrive again."""

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._free = limits.places
        self._held: dict[int, int] = {}
        self._in_order: list[_Waiter] = []
        self._by_arrival: dict[int, _Waiter] = {}
        self._drain = DrainRate()

    def arrive(self, key: int, priority: Priority, now: float, count: int = 1) -> list[Outcome]:
        """Adds a request that needs `count` places; gives every verdict that follows, its own or others'."""
        outcomes = self.expire(now)
        order = rank(priority, now, self._limits.aging_s)
        waiter = _Waiter(key, priority, min(count, self._limits.places), now, order)
        bisect.insort(self._in_order, waiter, key=lambda each: each.rank)
        self._by_arrival[key] = waiter
        outcomes += self._admit(now)
        if len(self._in_order) > self._limits.max_waiting:
            for last in turned_away(self._in_order, waiter, lambda kept: kept <= self._limits.max_waiting):
                self._drop(last)
                outcomes.append(last.outcome(Verdict.FULL if last.key == key else Verdict.DISPLACED, now))
        return outcomes

    def leave(self, key: int, now: float) -> list[Outcome]:
        """Gives places back, or leaves the line; gives every verdict that follows. Unknown keys are ignored."""
        if key in self._held:
            self._free += self._held.pop(key)
            self._drain.note(now)
        elif key in self._by_arrival:
            self._drop(self._by_arrival[key])
        return self.expire(now) + self._admit(now)

    def expire(self, now: float) -> list[Outcome]:
        """Turns away who has waited too long."""
        outcomes: list[Outcome] = []
        while (end := self.next_expiry()) is not None and end <= now:
            oldest = next(iter(self._by_arrival.values()))
            self._drop(oldest)
            outcomes.append(oldest.outcome(Verdict.EXPIRED, now))
        return outcomes + (self._admit(now) if outcomes else [])

    def next_expiry(self) -> float | None:
        """When the one who waits longest will have waited too long; None where nobody waits."""
        oldest = next(iter(self._by_arrival.values()), None)
        return None if oldest is None else oldest.arrived_at + self._limits.ttl_s

    def retry_after_s(self, now: float) -> float:
        """Seconds after which who waits now will have been served, as measured."""
        return self._drain.retry_after_s(len(self._in_order) + 1, now)

    @property
    def num_held(self) -> int:
        """Places that are held."""
        return self._limits.places - self._free

    @property
    def num_holders(self) -> int:
        """Requests that hold places."""
        return len(self._held)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._in_order)

    def _admit(self, now: float) -> list[Outcome]:
        """Gives free places away in order; nobody overtakes the first one, however many places that needs."""
        outcomes: list[Outcome] = []
        while self._in_order and self._in_order[0].count <= self._free:
            first = self._in_order[0]
            self._drop(first)
            self._held[first.key] = first.count
            self._free -= first.count
            outcomes.append(first.outcome(Verdict.ADMITTED, now))
        return outcomes

    def _drop(self, waiter: _Waiter) -> None:
        self._in_order.remove(waiter)
        del self._by_arrival[waiter.key]
