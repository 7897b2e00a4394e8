"""Measures how fast a queue drains, so that who is turned away can be told when to come back. Pure."""

from collections import deque

# Bounds of a hint, in seconds: not so soon that it is a new burst, not so late that nobody believes it.
MIN_HINT_S = 0.05
MAX_HINT_S = 60.0
# What is said while nothing has been measured.
UNKNOWN_HINT_S = 1.0


class DrainRate:
    """Departures of the last `window_s` seconds, at most the last `max_kept`; times are monotonic, in seconds."""

    def __init__(self, window_s: float = 30.0, max_kept: int = 256) -> None:
        self._window_s = window_s
        self._departures: deque[float] = deque(maxlen=max_kept)

    def note(self, now: float) -> None:
        """Somebody has left and made room."""
        self._departures.append(now)

    def per_second(self, now: float) -> float | None:
        """Departures per second up to now; None while there are too few to tell."""
        while self._departures and self._departures[0] < now - self._window_s:
            self._departures.popleft()
        if len(self._departures) < 2 or now <= self._departures[0]:
            return None
        return (len(self._departures) - 1) / (now - self._departures[0])

    def retry_after_s(self, num_ahead: int, now: float) -> float:
        """Seconds until so many requests will have left at this rate, within bounds.

        Who is told should add a random part of its own, or all who were turned away come back at once.
        """
        rate = self.per_second(now)
        if rate is None:
            return UNKNOWN_HINT_S
        return min(MAX_HINT_S, max(MIN_HINT_S, num_ahead / rate))
