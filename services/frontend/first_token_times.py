"""Remembers how long requests of a size lately took to their first token. Pure.

Sizes are prompt lengths in powers of two: within a class a prompt takes at most about twice as long as another one.
"""

from collections import deque

_KEPT = 256
# Fewer say nothing about a quantile.
ENOUGH = 20


class FirstTokenTimes:
    """The last times of each size, in seconds from the opening of the legs."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}

    def add(self, prompt_tokens: int, seconds: float) -> None:
        """A request got its first token."""
        self._times.setdefault(prompt_tokens.bit_length(), deque(maxlen=_KEPT)).append(seconds)

    def quantile(self, prompt_tokens: int, share: float) -> float | None:
        """The time within which `share` of the latest requests of that size had their first token, in seconds.

        None while too few are known.
        """
        times = sorted(self._times.get(prompt_tokens.bit_length(), ()))
        return times[min(len(times) - 1, int(share * len(times)))] if len(times) >= ENOUGH else None

    def fastest(self, prompt_tokens: int) -> float:
        """The shortest of the latest times of that size, in seconds; 0 while too few are known."""
        return self.quantile(prompt_tokens, 0.0) or 0.0
