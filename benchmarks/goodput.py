"""Searches each target's goodput: the highest request rate at which nearly all requests meet their latency targets.

Open loop with Poisson arrivals. The targets take turns, a probe each, so that a drift of the machine falls on all of
them; each has a search of its own. Every probe has new prompts; the probes of one number draw the same lengths.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.progress import Progress

from benchmarks.arrivals import poisson_arrivals
from benchmarks.flags import count, positive, share
from benchmarks.part_options import add_out
from benchmarks.plan import Plan, make_plan, random_prompts
from benchmarks.progress import make_progress
from benchmarks.rate_search import RateSearch
from benchmarks.report import show_rows, write_report
from benchmarks.shapes import add_shapes, add_slo, describe_shapes, describe_slo, long_from, read_shapes, read_slo
from benchmarks.stats import Slo
from benchmarks.summary import figures
from benchmarks.targets import Target, add_targets, open_targets, prompt_tokens
from services.cli.local_cluster import ClusterFailed
from services.common.config import ConfigError

_SHOWN = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms", "output_throughput")

Probe = dict[str, float]


def main(argv: Sequence[str]) -> int:
    """Searches, prints and writes; 1 where a target met no rate at all, 2 where it could not be started or asked."""
    parser = _parser()
    given = parser.parse_args(argv)
    if read_slo(given) == Slo():
        parser.error("there is no target to meet; set at least one of --slo-ttft-ms, --slo-tpot-ms, --slo-itl-ms")
    try:
        found = asyncio.run(measure(given))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    results = {name: summed_up(probes, given.attain) for name, probes in found.items()}
    rows = [{"target": name, **_shown(result)} for name, result in results.items()]
    show_rows(rows, write_report("goodput", argv, given.out, {"workload": _described(given), "results": results}))
    return 0 if all(result["goodput"] for result in results.values()) else 1


async def measure(given: argparse.Namespace) -> dict[str, list[Probe]]:
    """Every probe of every target, in order.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot hold the longest request.
        ClusterFailed: a local cluster did not become ready.
    """
    longest = max(shape.prompt_tokens.high + shape.output_tokens.high for shape in read_shapes(given) if shape.share)
    tokens = prompt_tokens(given.model, longest)
    async with open_targets(given, longest) as targets:
        with make_progress() as progress:
            return await _Searches(given, targets, tokens, progress).run()


class _Searches:
    """The search of each target, a probe in turn."""

    def __init__(
        self, given: argparse.Namespace, targets: dict[str, Target], tokens: Sequence[int], progress: Progress
    ) -> None:
        self._given = given
        self._targets = targets
        self._tokens = tokens
        self._progress = progress
        self._searches = {name: RateSearch(given.first_rate, given.precision, given.probes) for name in targets}
        self._probes: dict[str, list[Probe]] = {name: [] for name in targets}

    async def run(self) -> dict[str, list[Probe]]:
        for name in self._targets:
            await self._send(name, self._plan(self._given.first_rate, -1, self._given.warmups), "warm-up")
        for number in range(self._given.probes):
            for name, search in self._searches.items():
                if (rate := search.next()) is not None:
                    probe = await self._probe(name, rate, number)
                    search.note(rate, is_met=probe["slo_attainment"] >= self._given.attain)
                    self._probes[name].append(probe)
        return self._probes

    async def _probe(self, name: str, rate: float, number: int) -> Probe:
        plan = self._plan(rate, number, max(self._given.requests, round(rate * self._given.probe_s)))
        found = await self._send(name, plan, f"{rate:.3g} requests/s", number)
        return {"request_rate": rate, **found}

    async def _send(self, name: str, plan: Plan, title: str, number: int = -1) -> Probe:
        task = self._progress.add_task(f"{name}: {title}", total=len(plan.requests))
        prompts = random_prompts(plan, self._tokens, f"goodput/{self._given.seed}/{number}/{name}")
        run = await self._targets[name].run(plan, prompts, partial(self._progress.advance, task))
        return figures(run, read_slo(self._given), long_from(self._given))

    def _plan(self, rate: float, number: int, requests: int) -> Plan:
        seed = self._given.seed + 1000 * (number + 1)
        return make_plan(poisson_arrivals(rate, requests, seed), read_shapes(self._given), seed)


def summed_up(probes: Sequence[Probe], attain: float) -> dict[str, Any]:
    """The goodput of a target: the highest rate that was met below every rate that was missed; 0 where none was.

    `missed_rate` is the lowest that was missed, None where all were met: then the goodput is only a lower bound.
    """
    missed = [probe["request_rate"] for probe in probes if probe["slo_attainment"] < attain]
    limit = min(missed, default=float("inf"))
    met = [probe for probe in probes if probe["slo_attainment"] >= attain and probe["request_rate"] < limit]
    best = max(met, key=lambda probe: probe["request_rate"], default=None)
    return {
        "goodput": best["request_rate"] if best else 0.0,
        "missed_rate": min(missed, default=None),
        "at_goodput": best,
        "probes": list(probes),
    }


def _shown(result: dict[str, Any]) -> dict[str, object]:
    at_goodput = result["at_goodput"] or {}
    missed = result["missed_rate"] if result["missed_rate"] is not None else "–"
    return {"goodput": result["goodput"], "missed": missed} | {key: at_goodput.get(key, "–") for key in _SHOWN}


def _described(given: argparse.Namespace) -> dict[str, object]:
    kept = ("attain", "requests", "probe_s", "first_rate", "precision", "seed")
    described = {name: getattr(given, name) for name in kept}
    return {"model_id": given.model, **describe_shapes(given), **describe_slo(given), **described}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks goodput",
        description="Searches the highest request rate at which nearly all requests meet their latency targets.",
    )
    add_targets(parser)
    add_shapes(parser)
    add_slo(parser)
    add = parser.add_argument
    add("--attain", type=share, default=0.9, help="share of requests that must meet every target (%(default)s)")
    add("--first-rate", type=positive, default=1.0, help="requests per second to begin with (%(default)s)")
    add("--precision", type=positive, default=0.1, help="end once missed and met rates are this close (%(default)s)")
    add("--probes", type=count, default=10, help="most rates that are tried for each target (%(default)s)")
    add("--probe-s", type=positive, default=30.0, help="seconds for which requests arrive in a probe (%(default)s)")
    add("--requests", type=count, default=40, help="least requests of a probe, however long they take (%(default)s)")
    add("--warmups", type=count, default=4, help="requests to each target before its first probe (%(default)s)")
    add("--seed", type=int, default=0, help="of arrivals, lengths and prompts (%(default)s)")
    add_out(parser)
    return parser
