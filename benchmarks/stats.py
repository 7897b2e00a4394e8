"""Arithmetic over measured values. Pure; knows nothing of requests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """How one request went, in milliseconds; an answer of one token has no TPOT and no gap between tokens."""

    ttft_ms: float
    tpot_ms: float | None = None
    longest_itl_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets in milliseconds; a target that is None is always met. `itl_ms` is for the longest gap of a request."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: float | None = None

    def is_met(self, latency: Latency) -> bool:
        """True where every target is met; what a request does not have cannot miss its target."""
        pairs = (
            (latency.ttft_ms, self.ttft_ms),
            (latency.tpot_ms, self.tpot_ms),
            (latency.longest_itl_ms, self.itl_ms),
        )
        return all(value is None or target is None or value <= target for value, target in pairs)


def attainment(slo: Slo, latencies: Sequence[Latency], num_sent: int) -> float:
    """Share of the requests sent, failed ones included, that met every target.

    Args:
        slo: the targets.
        latencies: of each completed request.
        num_sent: completed and failed requests; 0 gives 0.
    """
    return sum(slo.is_met(latency) for latency in latencies) / num_sent if num_sent else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of all; never interpolated.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there is no percentile of nothing")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def distribution(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation, p95 and p99 as `mean_<name>` and so on; nothing where there are no values."""
    if not values:
        return {}
    return {
        f"mean_{name}": statistics.fmean(values),
        f"median_{name}": statistics.median(values),
        f"std_{name}": statistics.pstdev(values),
        f"p95_{name}": percentile(values, 0.95),
        f"p99_{name}": percentile(values, 0.99),
    }


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each figure's median over the rounds that have it."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}
