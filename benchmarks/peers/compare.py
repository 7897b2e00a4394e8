"""Compares Baton with other engines on the same checkpoint, prompts, cores and precision: the sides in turn, N rounds.

Baton's side is one colocated worker, asked over gRPC; the peers run inside their drivers' processes, without a server.
All processes stay loaded; whoever is not asked is stopped or sleeps. The first round warms up and does not count.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.progress import Progress

from benchmarks.answers import WorkerAnswers
from benchmarks.arrivals import at_once
from benchmarks.clusters import local_clusters
from benchmarks.flags import count, positive
from benchmarks.load import Load, Run
from benchmarks.part_options import add_out
from benchmarks.peers.catalog import BATON, PEERS, Side
from benchmarks.peers.install import install
from benchmarks.peers.options import add_folder, sides
from benchmarks.peers.peer_process import running_peer
from benchmarks.plan import Plan, Shape, make_plan, random_prompts
from benchmarks.progress import make_progress, tracked
from benchmarks.report import show_rows, write_report
from benchmarks.span import Span
from benchmarks.stats import Slo, medians
from benchmarks.summary import figures
from benchmarks.targets import Target, prompt_tokens
from benchmarks.workloads import WORKLOADS
from services.cli.local_cluster import ClusterFailed
from services.common.checkpoint import resolve_checkpoint
from services.common.config import ConfigError

# Figures that are compared; for a latency, less is better.
THROUGHPUTS = ("output_throughput", "prompt_throughput")
LATENCIES = ("median_ttft_ms", "median_tpot_ms")

Results = dict[str, dict[str, dict[str, Any]]]


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a request failed, 2 where a side could not be started."""
    given = _parser().parse_args(argv)
    try:
        if given.install:
            for side in tracked("install", given.peers):
                if side.engine != BATON:
                    install(PEERS[side.engine], given.peer_folder)
            return 0
        facts, found = asyncio.run(measure(given))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    results = {name: {side: _result(runs) for side, runs in sides.items()} for name, sides in found.items()}
    ratios = {name: ratios_of(sides) for name, sides in results.items()}
    content = {"model_id": str(given.model), "sides": facts, "results": results, "ratios": ratios}
    show_rows(_rows(results, ratios), write_report("peers", argv, given.out, content))
    return 1 if any(result["failed"] for sides in results.values() for result in sides.values()) else 0


async def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, list[Run]]]]:
    """What each peer says of itself, and every run of every side by workload.

    Raises:
        ConfigError: there is no such checkpoint, or a peer could not be started or died.
        ClusterFailed: Baton's worker did not become ready.
    """
    plans = {name: _plan(name, given.seed) for name in given.workload}
    longest = max(plan.longest for plan in plans.values())
    tokens = prompt_tokens(given.model, longest)
    async with contextlib.AsyncExitStack() as stack:
        sides: dict[str, Target] = {}
        facts: dict[str, Any] = {}
        for side in tracked("start", given.peers):
            if side.engine == BATON:
                sides[side.name] = await _baton(stack, given, side)
            else:
                timeouts_s = (given.start_timeout_s, given.timeout_s)
                peer = running_peer(side, resolve_checkpoint(given.model), given.peer_folder, longest, timeouts_s)
                process = sides[side.name] = await stack.enter_async_context(peer)
                facts[side.name] = process.facts
        progress = stack.enter_context(make_progress())
        found = {name: await _rounds(given, sides, name, plans[name], tokens, progress) for name in plans}
    return facts, found


async def _baton(stack: contextlib.AsyncExitStack, given: argparse.Namespace, side: Side) -> Load:
    quantization = f"quantization={side.quantization}" if side.quantization else ""
    clusters = local_clusters(
        ["colocated"], resolve_checkpoint(given.model), "bfloat16", given.start_timeout_s, quantization
    )
    (plan,) = await stack.enter_async_context(clusters)
    answers = WorkerAnswers(plan.of_role("colocated")[0].address)
    stack.push_async_callback(answers.close)
    return Load(answers, given.timeout_s)


async def _rounds(
    given: argparse.Namespace,
    sides: Mapping[str, Target],
    workload: str,
    plan: Plan,
    tokens: Sequence[int],
    progress: Progress,
) -> dict[str, list[Run]]:
    """Every counted run of a workload; the order of the sides turns round with each round."""
    found: dict[str, list[Run]] = {name: [] for name in sides}
    for index in range(-1, given.rounds):
        prompts = random_prompts(plan, tokens, f"{workload}/{given.seed}/{index}")
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            title = f"{workload} {name}: " + ("warm-up" if index < 0 else f"round {index + 1} of {given.rounds}")
            task = progress.add_task(title, total=len(plan.requests))
            run = await sides[name].run(plan, prompts, partial(progress.advance, task))
            if index >= 0:
                found[name].append(run)
    return found


def ratios_of(sides: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """How many times as fast as each peer Baton is, by figure; above 1 Baton is the faster one.

    Compared are sides of the same precision: the quantization of a side stands after its name.
    """
    found: dict[str, dict[str, float]] = {}
    for name, theirs in sides.items():
        engine, colon, quantization = name.partition(":")
        ours = sides.get(f"{BATON}{colon}{quantization}")
        if engine == BATON or ours is None:
            continue
        faster = {key: ours[key] / theirs[key] for key in THROUGHPUTS if key in ours and theirs.get(key)}
        sooner = {key: theirs[key] / ours[key] for key in LATENCIES if key in theirs and ours.get(key)}
        found[name] = faster | sooner
    return found


def _plan(name: str, seed: int) -> Plan:
    workload = WORKLOADS[name]
    prompt, output = (Span(tokens, tokens) for tokens in (workload.prompt_tokens, workload.output_tokens))
    return make_plan(at_once(workload.num_requests), [Shape(prompt, output)], seed, workload.num_requests)


def _result(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians over the rounds, and each round; failures are added up."""
    rounds = [figures(run, Slo()) for run in runs]
    return {**medians(rounds), "failed": sum(each["failed"] for each in rounds), "rounds": rounds}


def _rows(results: Results, ratios: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, object]]:
    """A row for each workload and side; the last column is Baton's output tokens per second over this side's."""
    return [
        {
            "workload": workload,
            "side": side,
            **{key: result.get(key, "–") for key in (*LATENCIES, *THROUGHPUTS)},
            "baton / side": ratios[workload].get(side, {}).get("output_throughput", "–"),
        }
        for workload, sides in results.items()
        for side, result in sides.items()
    ]


def _workloads(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(WORKLOADS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers",
        description="Compares Baton with other engines on the same requests, in turn.",
    )
    add = parser.add_argument
    add("--model", default="demo", help="checkpoint: demo, a directory or a hub id (%(default)s)")
    add("--workload", type=_workloads, default=",".join(WORKLOADS), help="sets of requests (%(default)s)")
    add(
        "--peers",
        type=sides,
        default=",".join((BATON, *PEERS)),
        help="sides, each alone (bfloat16) or followed by :int8 (%(default)s)",
    )
    add("--rounds", type=count, default=3, help="counted rounds; medians are shown (%(default)s)")
    add_folder(parser)
    add("--install", action="store_true", help="make the peers' environments and measure nothing")
    add("--seed", type=int, default=0, help="of prompts (%(default)s)")
    add("--timeout-s", type=positive, default=600.0, help="deadline of each request (%(default)s)")
    add("--start-timeout-s", type=positive, default=600.0, help="time for each side to become ready (%(default)s)")
    add_out(parser)
    return parser
