"""Draws a report as a PNG beside its JSON: `python -m benchmarks plot FILE...` draws those that are there already.

matplotlib is the extra `bench`; without it benchmarks measure all the same and say what to install.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.charts import Bars, Lines, Report, charts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "no plot: matplotlib is not installed; pip install 'baton[bench]'"

_COLUMNS = 2
_WIDTH, _HEIGHT = 6.5, 4.0  # inches of a chart
_BAR_SHARE = 0.8
_LABEL_SHARE = 0.055  # of the height of a chart
_HEADING_CHARS = 150


def main(argv: Sequence[str]) -> int:
    """Draws every report that is named; 2 where matplotlib or a file is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description="Draws reports as PNG.")
    parser.add_argument("reports", nargs="+", type=pathlib.Path, help="JSON files that benchmarks wrote")
    for path in parser.parse_args(argv).reports:
        try:
            drawn = draw(json.loads(path.read_text()), path)
        except (OSError, ValueError, KeyError) as error:
            sys.stderr.write(f"benchmarks: {path} is no report ({type(error).__name__}: {error})\n")
            return 2
        sys.stdout.write(f"{drawn or MISSING}\n")
        if drawn is None:
            return 2
    return 0


def draw(report: Report, path: pathlib.Path) -> pathlib.Path | None:
    """Draws a report beside its JSON file and returns where; None without matplotlib or where nothing can be drawn."""
    charts = charts_of(report)
    if not charts or importlib.util.find_spec("matplotlib") is None:
        return None
    # A figure without pyplot needs no display and leaves nothing behind.
    from matplotlib.figure import Figure

    rows = -(-len(charts) // _COLUMNS)
    columns = min(_COLUMNS, len(charts))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        _lines(axes, chart) if isinstance(chart, Lines) else _bars(axes, chart)
        axes.set_title(chart.title)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(charts) :]:
        axes.set_visible(False)
    figure.suptitle(_heading(report), fontsize=9)
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=120)
    return target


def _lines(axes: "Axes", chart: Lines) -> None:
    """Curves with their names at their ends, instead of a legend."""
    from matplotlib.ticker import LogFormatter

    drawn = {label: points for label, points in chart.curves.items() if points}
    for points in drawn.values():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4)
    if chart.is_log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in drawn.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    levels = [y for points in drawn.values() for _, y in points] + ([chart.goal[0]] if chart.goal else [])
    ends = [points[-1][1] for points in drawn.values()]
    if chart.is_log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        height = math.log(max(levels) / min(levels)) or 1.0
        places = [math.exp(place) for place in spread([math.log(end) for end in ends], _LABEL_SHARE * 1.1 * height)]
    else:
        top = 1.08 * max(levels)
        axes.set_ylim(0, top or 1.0)
        places = spread(ends, _LABEL_SHARE * top)
    if chart.goal is not None:
        level, name = chart.goal
        axes.axhline(level, color="grey", linestyle="--", linewidth=1)
        axes.annotate(name, (0, level), xycoords=("axes fraction", "data"), va="bottom", color="grey", fontsize=8)
    for line, label, place in zip(axes.get_lines(), drawn, places, strict=False):
        axes.annotate(
            label, (1.01, place), xycoords=("axes fraction", "data"), va="center", color=line.get_color(), fontsize=9
        )
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.grid(alpha=0.3)


def spread(values: Sequence[float], least: float) -> list[float]:
    """The values, moved up where needed so that any two are at least so far apart; their order stays."""
    places = list(values)
    below = float("-inf")
    for index in sorted(range(len(values)), key=values.__getitem__):
        places[index] = below = max(values[index], below + least)
    return places


def _bars(axes: "Axes", chart: Bars) -> None:
    """Groups of bars, each with its value above it."""
    width = _BAR_SHARE / len(chart.bars)
    for index, (label, values) in enumerate(chart.bars.items()):
        offset = (index - (len(chart.bars) - 1) / 2) * width
        places = [group + offset for group in range(len(values))]
        drawn = axes.bar(places, [value or 0.0 for value in values], width * 0.95, label=label)
        axes.bar_label(drawn, ["" if value is None else _spelt(value) for value in values], fontsize=7, padding=1)
    axes.set_xticks(range(len(chart.groups)), chart.groups)
    axes.set_ylabel(chart.y)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)


def _heading(report: Report) -> str:
    machine: dict[str, Any] = report["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, commit {machine['commit']}, {report['date'][:10]}"
    return "\n".join([*textwrap.wrap(report["command"], _HEADING_CHARS), where])


def _spelt(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
