"""How the growth benchmark judges costs: which curves it makes of its rows, and how steeply they end."""

import pytest

from benchmarks.charts import Lines, charts_of
from benchmarks.growth_curves import exponent, exponents

REPORT = {
    "benchmark": "growth",
    "contexts": [
        {"batch": batch, "context": context, "median_tpot_ms": batch * context**0.5}
        for context in (100, 400)
        for batch in (1, 16)
    ],
    "batches": [{"batch": batch, "context": 512, "median_tpot_ms": 8, "output_throughput": batch} for batch in (1, 2)],
    "schedulers": [
        {"queued": n, "decode_step_us": 50, "prefill_plan_us": n**2, "prefill_ahead_plan_us": n} for n in (1, 10, 1000)
    ],
    "streams": [
        {"streams": n, "frontend_us_per_token": 100 * n, "worker_us_per_token": 100, "frontend_cores": 1}
        for n in (4, 64)
    ],
}


def test_growth_is_told_of_every_cost() -> None:
    """Hand-computed: a cost that is the same per token grows as the streams do, one that grows per token faster."""
    assert exponents(REPORT) == pytest.approx(
        {
            "decode step by context, batch 1": 0.5,
            "decode step by context, batch 16": 0.5,
            "decode step by batch, context 512": 0.0,
            "planning by queue, decode step of 64": 0.0,
            "planning by queue, no room": 2.0,
            "planning by queue, nobody awaits": 1.0,
            "CPU by streams, frontend": 2.0,
            "CPU by streams, worker": 1.0,
        }
    )


def test_the_last_stretch_counts() -> None:
    """A cost that is flat at first and quadratic at the end is not taken for something between."""
    assert exponent(((1, 5.0), (10, 5.0), (100, 500.0))) == pytest.approx(2.0)
    assert exponent(((1, 5.0),)) == 0.0


def test_growth_is_drawn_with_its_exponents() -> None:
    """Costs with both axes logarithmic, where a power is a straight line."""
    charts = charts_of(REPORT)
    planning = next(chart for chart in charts if chart.title == "Time to plan a step")
    assert isinstance(planning, Lines)
    assert (planning.is_log_x, planning.is_log_y) == (True, True)
    assert planning.curves["no room: x^2.00"] == ((1, 1), (10, 100), (1000, 1000000))
    assert len(charts) == 6
