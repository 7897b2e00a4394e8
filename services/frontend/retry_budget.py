"""Bounds how much work this frontend repeats, over all its requests. Pure: the caller passes the clock in.

When workers fail one after the other, each request asks for several moves, and the moves themselves can bring down what
is left. So a move must be paid for: within any window they may be at most a share of the requests that ran in it, plus
a few a second so that a quiet frontend can still move its only request. Requests that run count, not only those that
came lately: a worker that dies takes all its running requests along, and moving each of them once is no storm.
"""

from collections import deque

WINDOW_S = 10.0
# What happened is counted in slices of this length, so that memory does not grow with the number of requests.
SLICE_S = 0.5


class RetryBudget:
    """Counts requests and what was repeated for them; times are seconds on the monotonic clock."""

    def __init__(self, ratio: float, per_second: float, *, window_s: float = WINDOW_S) -> None:
        self._ratio = ratio
        self._floor = per_second * window_s
        self._running = 0
        self._ended = _Recent(window_s)
        self._taken = _Recent(window_s)
        self._refused = 0

    def began(self) -> None:
        """A request came in; `ended` must follow."""
        self._running += 1

    def ended(self, now: float) -> None:
        """A request is over, whichever way."""
        self._running -= 1
        self._ended.add(now)

    def take(self, now: float) -> bool:
        """Pays for one repetition; False, with nothing taken, where the budget is used up."""
        ran = self._running + self._ended.count(now)
        if self._taken.count(now) + 1 > self._ratio * ran + self._floor:
            self._refused += 1
            return False
        self._taken.add(now)
        return True

    def stats(self) -> dict[str, int]:
        """Repetitions refused so far."""
        return {"retries_refused": self._refused}


class _Recent:
    """How often something happened within the last window, to the accuracy of a slice."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._slices: deque[list[float]] = deque()  # [start, count], oldest first
        self._total = 0

    def add(self, now: float) -> None:
        self._forget(now)
        if not self._slices or now >= self._slices[-1][0] + SLICE_S:
            self._slices.append([now, 0])
        self._slices[-1][1] += 1
        self._total += 1

    def count(self, now: float) -> int:
        self._forget(now)
        return self._total

    def _forget(self, now: float) -> None:
        while self._slices and now - self._slices[0][0] >= self._window_s + SLICE_S:
            self._total -= int(self._slices.popleft()[1])
