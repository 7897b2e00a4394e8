"""Remembers how long something lately took, by its size in tokens. Pure but for the clock that it is given.

Sizes are classes of powers of two. A class is known by the median of its latest times, so one slow turn of a busy
machine tells nothing. A class that does not occur is taken to have become faster as those have that do: else a time
from a busy hour could keep what it belongs to from ever being tried, and measured, again.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.common.types import SizedTime

_KEPT = 15
# Fewer may be all outliers.
ENOUGH = 3


@dataclass(frozen=True, slots=True)
class _Known:
    """A class when it was last heard of: its median, and those of all classes then, in nanoseconds."""

    heard: float
    point: SizedTime
    medians: Mapping[int, int]


class TimesBySize:
    """The latest times of each size; a class that has heard nothing for `kept_s` seconds is forgotten.

    Thread: one adds; any may read `points`.
    """

    def __init__(self, kept_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_s = kept_s
        self._clock = clock
        self._latest: dict[int, deque[SizedTime]] = {}
        self._known: dict[int, _Known] = {}

    def add(self, tokens: int, time_ns: int) -> None:
        """Something of so many tokens, at least one, took so long."""
        size, now = tokens.bit_length(), self._clock()
        latest = self._latest.setdefault(size, deque(maxlen=_KEPT))
        if size in self._known and now - self._known[size].heard > self._kept_s:
            latest.clear()
            del self._known[size]
        latest.append(SizedTime(tokens, time_ns))
        if len(latest) >= ENOUGH:
            point = sorted(latest, key=lambda each: each.time_ns)[len(latest) // 2]
            medians = {other: known.point.time_ns for other, known in self._known.items()}
            self._known[size] = _Known(now, point, medians)

    @property
    def points(self) -> tuple[SizedTime, ...]:
        """What is known now, smallest first."""
        oldest, every = self._clock() - self._kept_s, self._known.copy()
        points = (
            SizedTime(known.point.tokens, round(known.point.time_ns * _gain(known, every)))
            for known in every.values()
            if known.heard >= oldest
        )
        return tuple(sorted(points, key=lambda point: point.tokens))


def _gain(known: _Known, every: Mapping[int, _Known]) -> float:
    """The share of its time that a class should take now, by the classes heard of since; 1 at most."""
    shares = [
        other.point.time_ns / known.medians[size]
        for size, other in every.items()
        if other.heard > known.heard and known.medians.get(size)
    ]
    return min(1.0, statistics.median(shares)) if shares else 1.0
