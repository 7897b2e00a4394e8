"""Where the crossover benchmark says that two targets change places."""

import pytest

from benchmarks.charts import Lines, charts_of
from benchmarks.crossings import changes, crossovers

PAIR = ("split", "colocated")


def test_targets_change_places_where_their_curves_cross() -> None:
    """Hand-computed: twice as bad at 100 tokens and twice as good at 400, as a power of the length, is even at 200."""
    assert changes([(100, 2.0), (400, 0.5)], PAIR) == [
        {"prompt_tokens": 0, "better": "colocated"},
        {"prompt_tokens": 200, "better": "split"},
    ]


@pytest.mark.parametrize(
    ("ratios", "better"),
    [
        ([(100, 0.5), (400, 0.9), (800, 0.5)], ["split"]),
        ([(100, 0.5), (400, 1.05), (800, 0.5)], ["split"]),
        ([(100, 1.05), (400, 0.95)], []),
        ([], []),
        ([(100, 0.5), (400, 2.0), (800, 0.5)], ["split", "colocated", "split"]),
    ],
)
def test_noise_is_no_crossover(ratios: list[tuple[float, float]], better: list[str]) -> None:
    """Lengths at which both are even say nothing; those at which one is clearly better all count."""
    assert [each["better"] for each in changes(ratios, PAIR)] == better


def test_every_rate_figure_and_pair_has_a_row() -> None:
    """In any order of points; a figure that was not measured has no changes; each figure and rate is drawn."""
    points = [
        {"rate": rate, "prompt_tokens": tokens, "results": {"a": {"p99_itl_ms": tokens}, "b": {"p99_itl_ms": 200}}}
        for rate in (1.0, 2.0)
        for tokens in (400, 100)
    ]
    rows = crossovers(points)
    assert len(rows) == 2 * 4
    assert [row["changes"] for row in rows if row["figure"] == "p99_itl_ms" and row["pair"] == "a / b"] == [
        [{"prompt_tokens": 0, "better": "a"}, {"prompt_tokens": 200, "better": "b"}]
    ] * 2
    assert all(row["changes"] == [] for row in rows if row["figure"] != "p99_itl_ms")
    drawn = charts_of({"benchmark": "crossover", "points": points})
    assert [chart.title for chart in drawn] == [f"Gap between tokens, p99, {rate} requests/s" for rate in (1, 2)]
    assert isinstance(drawn[0], Lines)
    assert drawn[0].curves["a"] == ((100, 100), (400, 400))
