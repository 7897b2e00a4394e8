"""Measures where split and colocated change places: the same load with ever longer prompts, at every rate.

Every point is a `serve` of its own: open loop, targets in turn, new prompts in every round, medians over the rounds.
"""

import argparse
import asyncio
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.arrivals import poisson_arrivals
from benchmarks.crossings import FIGURES, crossovers
from benchmarks.flags import count, counts, positives
from benchmarks.part_options import add_out
from benchmarks.plan import Shape, make_plan
from benchmarks.progress import make_progress
from benchmarks.report import show_rows, write_report
from benchmarks.serve import Rounds, result_of, run_rounds
from benchmarks.serve_options import ServeOptions
from benchmarks.span import Span
from benchmarks.stats import Slo
from benchmarks.targets import add_targets, open_targets, prompt_tokens
from services.cli.local_cluster import ClusterFailed
from services.common.config import ConfigError

Point = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a request failed, 2 where a target could not be started."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.address or len(given.clusters) + len(given.peers) < 2:
        parser.error("one target has nobody to change places with; name two or more with --clusters or --peers")
    try:
        points = asyncio.run(_measure(given))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    found = crossovers(points)
    kept = ("model", "rates", "lengths", "output_tokens", "requests", "rounds", "seed")
    workload = {name: getattr(given, name) for name in kept}
    path = write_report("crossover", argv, given.out, {"workload": workload, "points": points, "crossovers": found})
    show_rows([{**row, "changes": _spelt(row["changes"])} for row in found], path)
    return 1 if any(result["failed"] for point in points for result in point["results"].values()) else 0


async def _measure(given: argparse.Namespace) -> list[Point]:
    longest = max(given.lengths) + given.output_tokens
    tokens = prompt_tokens(given.model, longest)
    points: list[Point] = []
    async with open_targets(given, longest) as targets:
        with make_progress() as progress:
            for index, (rate, length) in enumerate(itertools.product(given.rates, given.lengths)):
                options = _point_options(given, rate, length, given.seed + 1000 * index)
                found = await run_rounds(options, targets, tokens, progress)
                points.append({"rate": rate, "prompt_tokens": length, "results": _results(options, found)})
    return points


def _point_options(given: argparse.Namespace, rate: float, length: int, seed: int) -> ServeOptions:
    """What `serve` is asked at a point; its seed is its own, so that no point's prompts are another's."""
    shape = Shape(Span(length, length), Span(given.output_tokens, given.output_tokens))
    arrivals = poisson_arrivals(rate, given.requests, given.seed)
    return ServeOptions(
        targets=given,
        plan=make_plan(arrivals, [shape], given.seed),
        rounds=given.rounds,
        warmups=1,
        seed=seed,
        slo=Slo(),
        out=None,
        described={},
    )


def _results(options: ServeOptions, found: Rounds) -> dict[str, Any]:
    """Medians over the rounds of each target."""
    results = {name: result_of(options, runs) for name, runs in found.items()}
    return {name: {key: value for key, value in each.items() if key != "rounds"} for name, each in results.items()}


def _spelt(changes: Sequence[dict[str, Any]]) -> str:
    if not changes:
        return "even"
    first, *later = changes
    return ", ".join([first["better"], *(f"from {each['prompt_tokens']} {each['better']}" for each in later)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks crossover",
        description="Finds the lengths of prompts at which split and colocated clusters change places.",
    )
    add_targets(parser)
    parser.set_defaults(clusters="split,conditional,colocated-256")
    add = parser.add_argument
    add("--lengths", type=counts, default="64,256,1024,2048", help="tokens of every prompt of a point (%(default)s)")
    add("--rates", type=positives, default="1.5,3", help="requests per second, Poisson arrivals (%(default)s)")
    add("--output-tokens", type=count, default=48, help="tokens of every answer (%(default)s)")
    add("--requests", type=count, default=6, help="requests of a round at a point (%(default)s)")
    add(
        "--rounds",
        type=count,
        default=3,
        help=f"rounds at a point; of {', '.join(FIGURES)} medians count (%(default)s)",
    )
    add("--seed", type=int, default=0, help="of arrivals and prompts (%(default)s)")
    add_out(parser)
    return parser
