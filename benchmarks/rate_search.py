"""Finds the highest request rate at which the targets are still met, by doubling and then bisection. Pure."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class RateSearch:
    """Asks for a rate, is told whether it was met, and so on until the border is known closely enough.

    Attributes:
        first: requests per second to begin with.
        precision: the search ends once the lowest missed rate is at most this share above the highest met one.
        probes_left: how many more rates may be tried.
        met: highest rate that was met; 0 while none was.
        missed: lowest rate that was missed; infinite while none was.
    """

    first: float
    precision: float
    probes_left: int
    met: float = 0.0
    missed: float = math.inf

    def next(self) -> float | None:
        """The rate to try; None where the search is over.

        Halfway between two rates is their geometric mean: what counts is how many times more one carries than another.
        """
        if self.probes_left <= 0 or self.missed <= self.met * (1 + self.precision):
            return None
        if math.isinf(self.missed):
            return 2 * self.met if self.met else self.first
        return math.sqrt(self.met * self.missed) if self.met else self.missed / 2

    def note(self, rate: float, *, is_met: bool) -> None:
        """What came of a rate that `next` gave."""
        self.probes_left -= 1
        if is_met:
            self.met = max(self.met, rate)
        else:
            self.missed = min(self.missed, rate)
