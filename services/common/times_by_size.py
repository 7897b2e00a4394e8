"""Remembers how long something lately took, by its size in tokens. Pure but for the clock that it is given.

Sizes are classes of powers of two. A class is known by the median of its latest times, so one slow turn of a busy
machine tells nothing.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from services.common.types import SizedTime

_KEPT = 15
# Fewer may be all outliers.
ENOUGH = 3


class TimesBySize:
    """The latest times of each size; a class that has heard nothing for `kept_s` seconds is forgotten.

    Thread: one adds; any may read `points`.
    """

    def __init__(self, kept_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept_s = kept_s
        self._clock = clock
        self._latest: dict[int, deque[SizedTime]] = {}
        self._known: dict[int, tuple[float, SizedTime]] = {}

    def add(self, tokens: int, time_ns: int) -> None:
        """Something of so many tokens, at least one, took so long."""
        size, now = tokens.bit_length(), self._clock()
        heard, _ = self._known.get(size, (now, None))
        latest = self._latest.setdefault(size, deque(maxlen=_KEPT))
        if now - heard > self._kept_s:
            latest.clear()
            del self._known[size]
        latest.append(SizedTime(tokens, time_ns))
        if len(latest) >= ENOUGH:
            self._known[size] = (now, sorted(latest, key=lambda each: each.time_ns)[len(latest) // 2])

    @property
    def points(self) -> tuple[SizedTime, ...]:
        """What is known now, smallest first."""
        oldest = self._clock() - self._kept_s
        known = (point for heard, point in self._known.copy().values() if heard >= oldest)
        return tuple(sorted(known, key=lambda point: point.tokens))
