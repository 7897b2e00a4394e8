"""The curves of the `growth` benchmark, and how steeply each ends. Pure."""

import math
from collections.abc import Mapping
from typing import Any

Curve = tuple[tuple[float, float], ...]

_PLANS = {"decode_step_us": "decode step of 64", "prefill_plan_us": "no room", "prefill_ahead_plan_us": "nobody awaits"}


def curves(report: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """Cost by size, under what it is a cost of and then by what was kept fixed.

    Milliseconds of a decode step, microseconds of planning one, and CPU time in microseconds of as many tokens as there
    are streams.
    """
    batches = dict.fromkeys(row["batch"] for row in report["contexts"])
    return {
        "decode step by context": {
            f"batch {batch:g}": _curve([row for row in report["contexts"] if row["batch"] == batch], "context")
            for batch in batches
        },
        "decode step by batch": {f"context {report['batches'][0]['context']:g}": _curve(report["batches"], "batch")},
        "planning by queue": {
            name: tuple((row["queued"], row[key]) for row in report["schedulers"]) for key, name in _PLANS.items()
        },
        "CPU by streams": {
            name: tuple((row["streams"], row["streams"] * row[f"{name}_us_per_token"]) for row in report["streams"])
            for name in ("frontend", "worker")
        },
    }


def exponents(report: Mapping[str, Any]) -> dict[str, float]:
    """The exponent of each curve."""
    return {
        f"{cost}, {name}": exponent(curve) for cost, found in curves(report).items() for name, curve in found.items()
    }


def exponent(curve: Curve) -> float:
    """Of the power of x with which y grows between the last two points; 0 where there is one.

    The first points would hide it: what a cost begins with weighs less the further it grows.
    """
    if len(curve) < 2:
        return 0.0
    (before_x, before), (after_x, after) = curve[-2:]
    return math.log(after / before) / math.log(after_x / before_x)


def _curve(rows: list[Mapping[str, float]], x: str) -> Curve:
    return tuple((row[x], row["median_tpot_ms"]) for row in rows)
