"""The control-plane benchmark: what it makes of a run, and that schedulers are timed in the state that it says."""

from collections import Counter

import pytest

from benchmarks.control import control_figures
from benchmarks.load import Run, Timing
from benchmarks.scheduler_times import scheduler_row
from services.common.types import StageTimes


def test_cpu_time_is_told_by_token_and_by_core() -> None:
    """Hand-computed: five tokens in two seconds, half a core of the frontend."""
    timings = [Timing(0.0, (0.1, 0.2), StageTimes()), Timing(0.0, (0.1, 0.2, 0.3), StageTimes())]
    found = control_figures(Run(timings, Counter({"QueueFull": 1}), 2.0), {"frontend": 1.0})
    assert found == pytest.approx(
        {
            "failed": 1,
            "output_throughput": 2.5,
            "request_throughput": 1.0,
            "frontend_us_per_token": 200_000.0,
            "frontend_cores": 0.5,
        }
    )


def test_a_run_without_tokens_costs_nothing_per_token() -> None:
    """It is shown by its failures, and divides by nothing."""
    found = control_figures(Run([], Counter({"PeerUnreachable": 2}), 1.0), {"frontend": 0.1})
    assert (found["failed"], found["frontend_us_per_token"]) == (2, 0.0)


def test_schedulers_are_timed_with_a_queue() -> None:
    """Every figure is there and took time; a step of a batch costs more than finding that there is no room."""
    row = scheduler_row(20)
    assert row["queued"] == 20
    assert all(value > 0 for value in row.values())
    assert row["decode_step_us"] > row["prefill_plan_us"]
