"""Finds where two targets change places as prompts get longer. Pure."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Of each the lower one is better.
FIGURES = ("median_ttft_ms", "median_tpot_ms", "p99_itl_ms", "median_e2el_ms")
# Targets that are within this share of each other are even: what is called better should be better the next time, too.
MARGIN = 0.1

Points = Sequence[Mapping[str, Any]]


def crossovers(points: Points) -> list[dict[str, Any]]:
    """For each rate, figure and pair of targets: who is better, and from which length of prompts on.

    Args:
        points: with `rate`, `prompt_tokens` and `results`, which has the figures of each target by its name.

    Returns:
        Rows with `rate`, `figure`, `pair` and `changes`, in order of length, each with `better` and `prompt_tokens`:
        0 for who is better with the shortest prompts. A pair that is even everywhere has no changes.
    """
    rows: list[dict[str, Any]] = []
    for rate in dict.fromkeys(point["rate"] for point in points):
        chosen = sorted((each for each in points if each["rate"] == rate), key=lambda point: point["prompt_tokens"])
        for figure, pair in itertools.product(FIGURES, itertools.combinations(chosen[0]["results"], 2)):
            ratios = [(point["prompt_tokens"], _ratio(point["results"], figure, pair)) for point in chosen]
            found = changes([(tokens, ratio) for tokens, ratio in ratios if ratio is not None], pair)
            rows.append({"rate": rate, "figure": figure, "pair": " / ".join(pair), "changes": found})
    return rows


def changes(ratios: Sequence[tuple[float, float]], pair: tuple[str, str]) -> list[dict[str, Any]]:
    """Who is better from where on; between two lengths the ratio is taken to change as a power of the length.

    Args:
        ratios: length of prompts, and the first one's figure over the second one's, in order of length.
        pair: their names.
    """
    clear = [(tokens, math.log(ratio)) for tokens, ratio in ratios if abs(math.log(ratio)) > math.log(1 + MARGIN)]
    found = [{"prompt_tokens": 0, "better": pair[clear[0][1] > 0]}] if clear else []
    for (before, low), (after, high) in itertools.pairwise(clear):
        if (low > 0) is not (high > 0):
            at = before * (after / before) ** (low / (low - high))
            found.append({"prompt_tokens": round(at), "better": pair[high > 0]})
    return found


def _ratio(results: Mapping[str, Mapping[str, float]], figure: str, pair: tuple[str, str]) -> float | None:
    """None where one of them has no such figure."""
    first, second = (results[name].get(figure) for name in pair)
    return first / second if first and second else None
