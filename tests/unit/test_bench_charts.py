"""What benchmarks draw: which curves and bars come of a report, with which titles and units."""

import importlib.util
import itertools
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import plot
from benchmarks.charts import Bars, Lines, charts_of

MACHINE = {"processor": "a processor", "cores": 2, "commit": "abc"}
DECODE = {
    "benchmark": "decode",
    "date": "2026-01-02T03:04:05Z",
    "command": "python -m benchmarks decode",
    "machine": MACHINE,
    "rows": [
        {"batch": batch, "context": context, "median_tpot_ms": batch + context, "output_throughput": 10.0 * batch}
        for context in (256, 128)
        for batch in (4, 1)
    ],
}


def test_a_sweep_has_a_curve_for_each_value_of_the_other_axis() -> None:
    """Points are in order of the axis; a figure that no row has (the share, on a worker) makes no chart."""
    tpot, output = charts_of(DECODE)
    assert isinstance(tpot, Lines)
    assert (tpot.x, tpot.y) == ("tokens in KV", "ms")
    assert tpot.curves == {"batch 1": ((128, 129), (256, 257)), "batch 4": ((128, 132), (256, 260))}
    assert isinstance(output, Lines)
    assert output.curves["context 128"] == ((1, 10.0), (4, 40.0))


def test_engines_that_took_turns_have_curves_of_their_own() -> None:
    """Each is named; the same case of two engines never makes one curve."""
    rows = [
        {"engine": name, "batch": 1, "context": 128, "median_tpot_ms": i} for i, name in enumerate(("torch", "int8"))
    ]
    (tpot,) = charts_of({"benchmark": "decode", "rows": rows})
    assert isinstance(tpot, Lines)
    assert tpot.curves == {"torch, batch 1": ((128, 0),), "int8, batch 1": ((128, 1),)}


def test_goodput_is_drawn_against_its_goal() -> None:
    """Attainment in percent over the rate, with goodput in the curve's name; targets that were set are levels."""
    probes = [
        {"request_rate": 2.0, "slo_attainment": 0.5, "p99_itl_ms": 90.0},
        {"request_rate": 1.0, "slo_attainment": 1.0, "p99_itl_ms": 30.0},
    ]
    workload = {"attain": 0.9, "slo_itl_ms": 50.0, "slo_ttft_ms": None}
    report = {"benchmark": "goodput", "workload": workload, "results": {"split": {"goodput": 1.0, "probes": probes}}}
    attained, gaps = charts_of(report)
    assert attained == Lines(
        "Requests within every target, and goodput",
        "requests/s",
        "%",
        {"split: 1/s": ((1.0, 100.0), (2.0, 50.0))},
        (90.0, "goal: 90 %"),
    )
    assert isinstance(gaps, Lines)
    assert gaps.goal == (50.0, "target: 50 ms")


def test_percentiles_are_bars_for_each_target() -> None:
    """What was not measured is a gap, not a 0."""
    report = {"benchmark": "serve", "results": {"split": {"median_ttft_ms": 5.0}, "colocated": {"p99_ttft_ms": 9.0}}}
    assert charts_of(report) == [
        Bars(
            "Time to first token",
            "ms",
            ("median", "p95", "p99"),
            {"split": (5.0, None, None), "colocated": (None, None, 9.0)},
        )
    ]


def test_a_report_of_an_unknown_kind_has_no_chart() -> None:
    """A new benchmark needs no plot to be run."""
    assert charts_of({"benchmark": "something"}) == []


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_do_not_lie_on_each_other(values: list[float]) -> None:
    """Each is at its value or above it, at least the distance from the others, and in the values' order."""
    places = plot.spread(values, 5.0)
    assert all(place >= value for place, value in zip(places, values, strict=True))
    assert all(after - before >= 5.0 - 1e-9 for before, after in itertools.pairwise(sorted(places)))
    assert [value for _, value in sorted(zip(places, values, strict=True))] == sorted(values)


def test_without_matplotlib_there_is_no_plot(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Nothing is written and nothing fails."""
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    assert plot.draw(DECODE, tmp_path / "found.json") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra")
@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_a_plot_lies_beside_its_report(kind: str, tmp_path: pathlib.Path) -> None:
    """A PNG of the same name."""
    serve: dict[str, Any] = {**DECODE, "benchmark": "serve", "results": {"split": {"median_ttft_ms": 5.0}}}
    drawn = plot.draw(DECODE if kind == "lines" else serve, tmp_path / "found.json")
    assert drawn == tmp_path / "found.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
