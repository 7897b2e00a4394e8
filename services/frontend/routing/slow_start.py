"""Gives a worker that has just come only a part of its weight, growing in time, until its caches are warm. Pure.

Relative, as all weights are: where every worker is equally fresh, nobody gets less than another. Source: Envoy.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlowStart:
    """`window_s` seconds from `least_share` of the weight to all of it; 0: at once."""

    window_s: float = 0.0
    least_share: float = 0.1

    def ramp(self, age_s: float) -> float:
        """Share of its weight that a worker has at this age, in (0, 1]."""
        if age_s >= self.window_s:
            return 1.0
        return max(self.least_share, age_s / self.window_s)
