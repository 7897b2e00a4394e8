"""Which charts a report is shown as: plain data with titles and units, from the JSON of any benchmark. Pure."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.crossings import FIGURES
from benchmarks.growth_curves import curves, exponent

Report = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over a common axis: points (x, y) by label; `goal` is a level to compare with, and what it is called."""

    title: str
    x: str
    y: str
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    goal: tuple[float, str] | None = None
    is_log_x: bool = False
    is_log_y: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars: for each label one value a group, None where it was not measured."""

    title: str
    y: str
    groups: tuple[str, ...]
    bars: Mapping[str, tuple[float | None, ...]]


Chart = Lines | Bars


def charts_of(report: Report) -> list[Chart]:
    """The charts of a report; those without a value are left out."""
    make = _CHARTS.get(report["benchmark"])
    return [chart for chart in (make(report) if make else ()) if _has_values(chart)]


def _serve(report: Report) -> Iterable[Chart]:
    results: Mapping[str, Row] = report["results"]
    for key, title in (
        ("ttft_ms", "Time to first token"), ("itl_ms", "Gap between tokens"), ("tpot_ms", "Time per output token"),
    ):  # fmt: skip
        statistics = ("median", "p95", "p99")
        bars = {name: tuple(row.get(f"{each}_{key}") for each in statistics) for name, row in results.items()}
        yield Bars(title, "ms", statistics, bars)
    kinds = ("short", "long")
    for key in ("median_ttft_ms", "p99_itl_ms"):
        bars = {name: tuple(row.get(f"{kind}_{key}") for kind in kinds) for name, row in results.items()}
        yield Bars(f"{_TITLES[key]}, by prompt", "ms", kinds, bars)
    bars = {name: (row.get("output_throughput"),) for name, row in results.items()}
    yield Bars("Output", "tokens/s", ("output tokens",), bars)


def _goodput(report: Report) -> Iterable[Chart]:
    workload, results = report["workload"], report["results"]
    goal = (100 * workload["attain"], f"goal: {100 * workload['attain']:.0f} %")
    attained = {
        f"{name}: {result['goodput']:.2g}/s": _curve(result["probes"], "request_rate", "slo_attainment", 100)
        for name, result in results.items()
    }
    x = "requests/s"
    yield Lines("Requests within every target, and goodput", x, "%", attained, goal)
    for key, title, target in (
        ("p99_ttft_ms", "Time to first token, p99", "slo_ttft_ms"),
        ("p99_itl_ms", "Gap between tokens, p99", "slo_itl_ms"),
        ("median_tpot_ms", "Time per output token, median", "slo_tpot_ms"),
    ):
        curves = {name: _curve(result["probes"], "request_rate", key) for name, result in results.items()}
        level = workload.get(target)
        yield Lines(title, x, "ms", curves, (level, f"target: {level:g} ms") if level else None)


def _decode(report: Report) -> Iterable[Chart]:
    rows = report["rows"]
    yield _sweep("Time per output token", "tokens in KV", "ms", rows, ("context", "median_tpot_ms"), "batch")
    yield _sweep("Output", "requests in a step", "tokens/s", rows, ("batch", "output_throughput"), "context")
    yield _sweep(
        "Speed of reading, against plain reading",
        "tokens in KV",
        "share",
        rows,
        ("context", "bandwidth_share"),
        "batch",
    )
    yield _sweep(
        "Share of the limit that binds", "requests in a step", "share", rows, ("batch", "limit_share"), "context"
    )


def _prefill(report: Report) -> Iterable[Chart]:
    rows = report["rows"]
    yield _sweep("Prompts", "tokens of a prompt", "tokens/s", rows, ("prompt_tokens", "prompt_throughput"), "batch")
    yield _sweep(
        "Operations, against a large matrix product",
        "tokens of a prompt",
        "share",
        rows,
        ("prompt_tokens", "gemm_share"),
        "batch",
    )


def _transfer(report: Report) -> Iterable[Chart]:
    rows = report["rows"]
    if "prompt_tokens" in rows[0]:
        yield Lines("Handoff", "tokens of a prompt", "GB/s", {"": _curve(rows, "prompt_tokens", "gb_per_s")})
        yield Lines("Fetch", "tokens of a prompt", "ms", {"": _curve(rows, "prompt_tokens", "fetch_ms")})
        return
    for title, y, keys in (
        ("Large fetch", "GB/s", {"handoff": "gb_per_s", "raw socket": "raw_gb_per_s"}),
        ("One message", "ms", {"handoff": "message_ms", "raw socket": "raw_message_ms"}),
    ):
        curves = {label: _curve(rows, "message_kib", key) for label, key in keys.items()}
        yield Lines(title, "size of a message, KiB", y, curves, is_log_x=True)


def _peers(report: Report) -> Iterable[Chart]:
    results: Mapping[str, Mapping[str, Row]] = report["results"]
    sides = list(dict.fromkeys(side for found in results.values() for side in found))
    for key, title, y in (
        ("output_throughput", "Output", "tokens/s"),
        ("median_ttft_ms", "Time to first token, median", "ms"),
        ("median_tpot_ms", "Time per output token, median", "ms"),
    ):
        bars = {side: tuple(found.get(side, {}).get(key) for found in results.values()) for side in sides}
        yield Bars(title, y, tuple(results), bars)


def _control(report: Report) -> Iterable[Chart]:
    rows = report["schedulers"]
    curves = {
        "step of 64 requests (decode)": _curve(rows, "queued", "decode_step_us"),
        "no room (prefill)": _curve(rows, "queued", "prefill_plan_us"),
        "nobody awaits (prefill)": _curve(rows, "queued", "prefill_ahead_plan_us"),
    }
    yield Lines("Time to plan a step", "queued requests", "µs", curves, is_log_x=True)
    x, answers, paced = "streams", report["answers"], report["paced"]
    tokens = {"": _curve(answers, "streams", "output_throughput")}
    yield Lines("Tokens carried, engine without cost", x, "tokens/s", tokens, is_log_x=True)
    requests = {"": _curve(report["requests"], "streams", "request_throughput")}
    yield Lines("One-token requests carried, engine without cost", x, "requests/s", requests, is_log_x=True)
    names = ("frontend", "worker", "client")
    spent = {name: _curve(answers, "streams", f"{name}_us_per_token") for name in names}
    yield Lines("CPU time of a token, engine without cost", x, "µs", spent, is_log_x=True)
    busy = {name: _curve(paced, "streams", f"{name}_cores") for name in names}
    yield Lines("Cores that are busy, steps of a fixed time", x, "cores", busy, is_log_x=True)


def _growth(report: Report) -> Iterable[Chart]:
    """Both axes logarithmic: what is linear is as steep everywhere, and x^1."""
    found = {
        cost: {f"{name}: x^{exponent(curve):.2f}": curve for name, curve in each.items()}
        for cost, each in curves(report).items()
    }
    for cost, title, x, y in (
        ("decode step by context", "Decode step, engine alone", "tokens in KV", "ms"),
        ("decode step by batch", "Decode step, engine alone", "requests in a step", "ms"),
        ("planning by queue", "Time to plan a step", "queued requests", "µs"),
        ("CPU by streams", "CPU time of a token for each stream", "streams", "µs"),
    ):
        yield Lines(title, x, y, found[cost], is_log_x=True, is_log_y=True)
    rows = report["batches"]
    tokens = {f"context {rows[0]['context']:g}": _curve(rows, "batch", "output_throughput")}
    yield Lines("Output, engine alone", "requests in a step", "tokens/s", tokens, is_log_x=True)
    busy = {name: _curve(report["streams"], "streams", f"{name}_cores") for name in ("frontend", "worker", "client")}
    yield Lines("Cores that are busy, steps of a fixed time", "streams", "cores", busy, is_log_x=True)


def _crossover(report: Report) -> Iterable[Chart]:
    points = report["points"]
    names, rates = (list(points[0]["results"]), list(dict.fromkeys(point["rate"] for point in points)))
    for figure, rate in itertools.product(FIGURES, rates):
        chosen = [point for point in points if point["rate"] == rate]
        drawn = {
            name: _curve([{"x": each["prompt_tokens"], **each["results"][name]} for each in chosen], "x", figure)
            for name in names
        }
        title = f"{_TITLES[figure]}, {rate:g} requests/s"
        yield Lines(title, "tokens of a prompt", "ms", drawn, is_log_x=True, is_log_y=True)


_CHARTS: dict[str, Callable[[Report], Iterable[Chart]]] = {
    "serve": _serve,
    "goodput": _goodput,
    "decode": _decode,
    "prefill": _prefill,
    "transfer": _transfer,
    "peers": _peers,
    "control": _control,
    "growth": _growth,
    "crossover": _crossover,
    "hedging": _serve,
}
_TITLES = {
    "median_ttft_ms": "Time to first token, median",
    "median_tpot_ms": "Time per output token, median",
    "p99_itl_ms": "Gap between tokens, p99",
    "median_e2el_ms": "Whole answer, median",
}


def _sweep(title: str, x: str, y: str, rows: Sequence[Row], keys: tuple[str, str], by: str) -> Lines:
    """A curve of `keys` for each value of `by`, of each engine where several took turns."""
    curves: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[by]):
        side = f"{row['engine']}, " if "engine" in row else ""
        curves.setdefault(f"{side}{by} {row[by]:g}", []).append(row)
    return Lines(title, x, y, {name: _curve(chosen, *keys) for name, chosen in curves.items()}, is_log_x=True)


def _curve(rows: Iterable[Row], x: str, y: str, factor: float = 1.0) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((row[x], row[y] * factor) for row in rows if x in row and y in row))


def _has_values(chart: Chart) -> bool:
    if isinstance(chart, Lines):
        return any(chart.curves.values())
    return any(value is not None for values in chart.bars.values() for value in values)
