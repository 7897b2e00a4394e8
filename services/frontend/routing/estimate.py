"""Estimates how long something of any size takes, from sizes that were measured. Pure.

Between two measured sizes time grows evenly, outside of them in proportion; it never falls where size grows.
"""

from collections.abc import Sequence

from services.common.types import SizedTime

_S = 1e-9


def estimate_s(measured: Sequence[SizedTime], tokens: int) -> float:
    """Seconds for so many tokens; `measured` is ordered by size, what is not is left out. Nothing measured: 0."""
    size, seconds = 0, 0.0
    for point in measured:
        if point.tokens <= size:
            continue
        size_before, seconds_before = size, seconds
        size, seconds = point.tokens, max(seconds, point.time_ns * _S)
        if tokens <= size:
            return seconds_before + (seconds - seconds_before) * (tokens - size_before) / (size - size_before)
    return seconds * tokens / max(1, size)
