"""Measures the control plane: what one frontend and one decode worker carry when the model's time is taken out.

The worker is a process like any other whose engine gives a token at once (`free_worker`); this process is the client.
All share the cores of the machine, so that throughput includes the client's cost; CPU time is told for each of them.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence

from benchmarks.answers import FrontendAnswers
from benchmarks.arrivals import at_once
from benchmarks.clusters import local_plan, running_cluster
from benchmarks.flags import count, counts, positive
from benchmarks.free_worker import FINGERPRINT, STEP_MS
from benchmarks.load import Load, Run
from benchmarks.part import Rows
from benchmarks.part_options import add_out
from benchmarks.plan import Plan, Shape, make_plan, random_prompts
from benchmarks.progress import tracked
from benchmarks.report import show_rows, write_report
from benchmarks.scheduler_times import scheduler_row
from benchmarks.span import Span
from benchmarks.stats import medians
from benchmarks.targets import prompt_tokens
from services.cli.cluster_plan import ClusterPlan
from services.cli.local_cluster import ClusterFailed, LocalCluster
from services.common.checkpoint import resolve_checkpoint
from services.common.config import ConfigError
from services.common.rpc.channel import open_channel
from services.common.worker_client import WorkerClient

_MODEL = "demo"  # of which only the vocabulary is used
_PROMPT_TOKENS = 32
_CLIENT = "client"


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a request failed, 2 where the processes could not be started."""
    given = _parser().parse_args(argv)
    try:
        found = asyncio.run(measure(given))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    path = write_report("control", argv, given.out, found)
    for rows in found.values():
        show_rows(rows, path)
    return 1 if any(row.get("failed") for rows in found.values() for row in rows) else 0


async def measure(given: argparse.Namespace) -> dict[str, Rows]:
    """Rows of each part: schedulers by queued requests; answers, paced answers and one-token requests by streams.

    Raises:
        ConfigError, ClusterFailed: the processes could not be started.
    """
    found = {"schedulers": [scheduler_row(queued) for queued in tracked("schedulers", given.queued)]}
    async with _free_cluster(given, step_ms=0.0) as cluster:
        found["answers"] = await _sweep("answers", given, cluster, given.output_tokens)
        found["requests"] = await _sweep("one-token requests", given, cluster, 1)
    return {**found, "paced": await paced(given)}


async def paced(given: argparse.Namespace) -> Rows:
    """A row for each number of streams, with an engine whose steps take `given.step_ms`.

    Raises:
        ConfigError, ClusterFailed: the processes could not be started.
    """
    async with _free_cluster(given, step_ms=given.step_ms) as cluster:
        return await _sweep("paced answers", given, cluster, given.output_tokens)


@contextlib.asynccontextmanager
async def _free_cluster(given: argparse.Namespace, step_ms: float) -> AsyncGenerator[LocalCluster]:
    """A frontend and one colocated worker with a free engine."""
    most = max(given.streams)
    flags = f"max-num-seqs={most} max-num-batched-tokens={max(2048, most)} max-queued-requests={2 * most}"
    plan = freed(await local_plan("colocated", resolve_checkpoint(_MODEL), "", flags), step_ms)
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as logs:
        async with running_cluster(plan, pathlib.Path(logs), given.start_timeout_s) as cluster:
            await _check_free(plan)
            yield cluster


async def _check_free(plan: ClusterPlan) -> None:
    """Makes sure that no model is measured.

    Raises:
        ConfigError: the worker has a real engine.
    """
    channel = open_channel(plan.of_role("colocated")[0].address)
    try:
        info, _ = await WorkerClient(channel, "the worker").describe()
    finally:
        await channel.close()
    if info.layout.model_fingerprint != FINGERPRINT:
        raise ConfigError("the worker has a real engine; `free_worker` no longer fits how workers load theirs")


def freed(plan: ClusterPlan, step_ms: float) -> ClusterPlan:
    """The plan with an engine that costs nothing."""
    processes = [
        dataclasses.replace(
            each,
            argv=(*each.argv[:2], "benchmarks.free_worker", *each.argv[3:]),
            env={**each.env, STEP_MS: str(step_ms)},
        )
        if each.role == "colocated"
        else each
        for each in plan.processes
    ]
    return dataclasses.replace(plan, processes=tuple(processes))


async def _sweep(title: str, given: argparse.Namespace, cluster: LocalCluster, output_tokens: int) -> Rows:
    """A row for each number of streams, with medians over the rounds."""
    pids = {each.plan.role: each.pid for each in cluster.processes if each.pid is not None}
    address = next(each.plan.address for each in cluster.processes if each.plan.role == "frontend")
    answers = FrontendAnswers(address)
    load = Load(answers, given.timeout_s)
    vocabulary = prompt_tokens(_MODEL, _PROMPT_TOKENS + output_tokens)
    rows: Rows = []
    try:
        for streams in tracked(title, given.streams):
            shape = Shape(Span(_PROMPT_TOKENS, _PROMPT_TOKENS), Span(output_tokens, output_tokens))
            requests = max(streams * given.turns, given.requests)
            plan = make_plan(at_once(requests), [shape], 0, streams)
            rounds = [
                await _row(load, plan, random_prompts(plan, vocabulary, f"{title}/{streams}/{index}"), pids)
                for index in range(given.rounds + 1)
            ]
            rows.append({"streams": streams, **medians(rounds[1:])})
    finally:
        await answers.close()
    return rows


async def _row(load: Load, plan: Plan, prompts: Sequence[Sequence[int]], pids: dict[str, int]) -> dict[str, float]:
    before = _cpu_s(pids)
    run = await load.run(plan, prompts, lambda: None)
    spent = {name: after - before[name] for name, after in _cpu_s(pids).items()}
    return control_figures(run, spent)


def control_figures(run: Run, spent_s: dict[str, float]) -> dict[str, float]:
    """Throughput of a run, and CPU time of each process by token and as cores that were busy.

    Args:
        run: what came of the requests.
        spent_s: seconds of CPU time during the run, by process.
    """
    tokens = sum(len(timing.tokens) for timing in run.timings)
    found: dict[str, float] = {
        "failed": run.errors.total(),
        "output_throughput": tokens / run.ended,
        "request_throughput": len(run.timings) / run.ended,
    }
    for name, seconds in spent_s.items():
        found[f"{name}_us_per_token"] = seconds / tokens * 1e6 if tokens else 0.0
        found[f"{name}_cores"] = seconds / run.ended
    return found


def _cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """CPU time so far of the frontend, the worker and this process."""
    kept = {"frontend": pids["frontend"], "worker": pids["colocated"]}
    return {name: _process_cpu_s(pid) for name, pid in kept.items()} | {_CLIENT: time.process_time()}


def _process_cpu_s(pid: int) -> float:
    """From Linux's clock of that process, which counts nanoseconds; /proc counts hundredths of a second."""
    return time.clock_gettime((~pid << 3) | 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks control",
        description="Times the schedulers, and one frontend with one decode worker whose engine costs nothing.",
    )
    add = parser.add_argument
    add("--requests", type=count, default=64, help="least requests of a round (%(default)s)")
    add("--turns", type=count, default=4, help="requests of a stream in a round, one after another (%(default)s)")
    add("--rounds", type=count, default=3, help="counted rounds; medians are shown (%(default)s)")
    add_streams(parser, output_tokens=64, step_ms=20.0)
    add_out(parser)
    return parser


def add_streams(parser: argparse.ArgumentParser, output_tokens: int, step_ms: float) -> None:
    """How much waits, streams and runs in an engine without cost."""
    add = parser.add_argument
    add("--queued", type=counts, default="1,10,100,1000", help="waiting requests for the schedulers (%(default)s)")
    add("--streams", type=counts, default="1,4,16,64,256", help="requests at once (%(default)s)")
    add("--output-tokens", type=count, default=output_tokens, help="tokens of an answer (%(default)s)")
    add("--step-ms", type=positive, default=step_ms, help="time of a step for paced answers (%(default)s)")
    add("--timeout-s", type=positive, default=120.0, help="deadline of each request (%(default)s)")
    add("--start-timeout-s", type=positive, default=120.0, help="time for the processes to become ready (%(default)s)")
