"""The arithmetic of the benchmarks: percentiles, targets, medians over rounds, and the figures of a run."""

import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Run, Timing
from benchmarks.stats import Latency, Slo, attainment, distribution, medians, percentile
from benchmarks.summary import figures, latency
from services.common.types import StageTimes, Usage

VALUES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 1))
def test_a_percentile_has_its_share_at_or_below_it(values: list[float], share: float) -> None:
    """The percentile is a measured value, at least that share is not above it, and less is strictly below it."""
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) <= share * len(values)


def test_there_is_no_percentile_of_nothing() -> None:
    """An empty run is an error, not a 0 that looks fast."""
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_distribution_is_named_after_its_value() -> None:
    """Hand-computed; the keys are those of vLLM's benchmark."""
    found = distribution("ttft_ms", [1.0, 2.0, 3.0, 10.0])
    assert found == {
        "mean_ttft_ms": 4.0,
        "median_ttft_ms": 2.5,
        "std_ttft_ms": pytest.approx(statistics.pstdev([1, 2, 3, 10])),
        "p95_ttft_ms": 10.0,
        "p99_ttft_ms": 10.0,
    }
    assert distribution("tpot_ms", []) == {}


@pytest.mark.parametrize(
    ("latency", "is_met"),
    [
        (Latency(100.0, 10.0, 30.0), True),
        (Latency(100.1, 10.0, 30.0), False),
        (Latency(100.0, 10.1, 30.0), False),
        (Latency(100.0, 10.0, 30.1), False),
        (Latency(100.0), True),
    ],
)
def test_a_request_must_meet_every_target(latency: Latency, is_met: bool) -> None:
    """The target itself is met; an answer of one token has no TPOT and no gap to miss."""
    assert Slo(ttft_ms=100.0, tpot_ms=10.0, itl_ms=30.0).is_met(latency) is is_met


def test_a_target_that_is_not_set_is_met() -> None:
    """However slow the request was."""
    assert Slo(ttft_ms=100.0).is_met(Latency(100.0, 1e6, 1e6))


def test_failed_requests_miss_their_targets() -> None:
    """Attainment is a share of what was sent: shedding requests does not raise it."""
    slo = Slo(ttft_ms=100.0)
    assert attainment(slo, [Latency(50.0), Latency(150.0)], 4) == 0.25
    assert attainment(slo, [], 0) == 0.0


def test_medians_are_taken_figure_by_figure() -> None:
    """A round that lacks a figure does not count for it."""
    rounds = [{"a": 1.0, "b": 9.0}, {"a": 3.0}, {"a": 2.0, "b": 7.0}]
    assert medians(rounds) == {"a": 2.0, "b": 8.0}


def test_the_figures_of_a_run_are_what_their_names_say() -> None:
    """Hand-computed: two requests completed, one failed, and the run lasted until that had ended."""
    run = Run(
        timings=[
            Timing(0.0, (0.5, 0.6, 0.7), StageTimes(queue_ns=100_000_000, prefill_ns=200_000_000), Usage(100, 3, 16)),
            Timing(0.1, (1.0, 2.0, 2.0), StageTimes(prefill_ns=400_000_000), Usage(300, 3, 0), lag=0.025),
        ],
        errors=Counter({"QueueFull": 1}),
        ended=4.0,
    )
    found = figures(run, Slo(ttft_ms=600.0, tpot_ms=200.0))
    expected = {
        "completed": 2,
        "failed": 1,
        "duration": 4.0,
        "request_throughput": 0.5,
        "output_throughput": 1.5,
        "total_token_throughput": 101.5,
        "total_input_tokens": 400,
        "total_output_tokens": 6,
        "total_cached_tokens": 16,
        "mean_ttft_ms": 700.0,
        "median_tpot_ms": 300.0,
        "p99_itl_ms": 1000.0,  # two tokens in one message are one arrival
        "median_itl_ms": 100.0,
        "median_e2el_ms": 1300.0,
        "median_ttft_overhead_ms": 350.0,
        "max_send_lag_ms": 25.0,
        "slo_attainment": 1 / 3,
        "request_goodput": 0.25,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_latencies_of_short_and_long_prompts_are_told_apart() -> None:
    """Each under its name, from its own requests only; one at the border is long, and a kind without any has none."""
    chat = Timing(0.0, (0.1, 0.2, 0.3), StageTimes(), Usage(99, 3, 0))
    paper = Timing(0.0, (2.0, 2.5), StageTimes(), Usage(100, 2, 0))
    found = figures(Run([chat, paper], ended=3.0), Slo(), long_from=100)
    assert (found["short_completed"], found["long_completed"]) == (1, 1)
    assert (found["short_p99_itl_ms"], found["long_p99_itl_ms"]) == pytest.approx((100.0, 500.0))
    assert (found["short_median_ttft_ms"], found["long_median_ttft_ms"]) == pytest.approx((100.0, 2000.0))
    only_short = figures(Run([chat], ended=3.0), Slo(), long_from=100)
    assert only_short["long_completed"] == 0
    assert "long_p99_itl_ms" not in only_short
    assert not any(name.startswith("short") for name in figures(Run([chat], ended=3.0), Slo()))


def test_the_longest_gap_of_a_request_counts() -> None:
    """One pause among many quick tokens is what a strict ITL target is for."""
    timing = Timing(1.0, (1.5, 1.6, 2.0, 2.0, 2.1), StageTimes())
    assert latency(timing) == Latency(500.0, pytest.approx(150.0), pytest.approx(400.0))
    assert latency(Timing(1.0, (1.5,), StageTimes())) == Latency(500.0)


def test_a_run_without_answers_has_no_latencies() -> None:
    """What was not measured is missing rather than 0."""
    assert figures(Run(errors=Counter({"PeerUnreachable": 2}), ended=1.0), Slo()) == {
        "completed": 0,
        "failed": 2,
        "duration": 1.0,
    }
