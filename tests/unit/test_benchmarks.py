"""The arithmetic of the benchmarks."""

import pytest

from benchmarks.load import Timing
from benchmarks.summary import percentile, summarize
from benchmarks.workloads import Workload
from services.common.types import StageTimes

PAIR = Workload(name="pair", num_requests=2, prompt_tokens=100, output_tokens=3)
TIMINGS = [
    Timing(0.0, (0.5, 0.6, 0.7), StageTimes(prefill_ns=200_000_000)),
    Timing(0.1, (1.0, 1.5, 2.0), StageTimes(prefill_ns=400_000_000)),
]


def test_figures_are_what_their_names_say() -> None:
    """Hand-computed: two requests, one of them sent later."""
    found = summarize(PAIR, TIMINGS)
    expected = {
        "duration_s": 2.0,
        "request_throughput": 1.0,
        "output_throughput": 3.0,
        "prompt_throughput": 200.0,
        "mean_ttft_ms": 700.0,
        "median_tpot_ms": 300.0,
        "p99_itl_ms": 500.0,
        "median_e2el_ms": 1300.0,
        "median_prefill_ms": 300.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.51, 3.0), (0.99, 4.0), (0.0, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: float) -> None:
    """No figure is interpolated."""
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value
