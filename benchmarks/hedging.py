"""Measures what hedging is worth: one of two workers stands still now and then, asked with and without it in turn.

Both workers are processes whose engine costs nothing but a fixed time for each step (`free_worker`); two frontends
route to them, of which one hedges. The same requests arrive at both, open loop; a worker is stopped by signal.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence

from benchmarks.answers import FrontendAnswers
from benchmarks.arrivals import poisson_arrivals
from benchmarks.clusters import local_plan, running_cluster
from benchmarks.control import freed
from benchmarks.flags import count, positive
from benchmarks.load import Load
from benchmarks.part_options import add_out
from benchmarks.plan import Shape, make_plan
from benchmarks.progress import make_progress
from benchmarks.report import show_rows, write_report
from benchmarks.serve import Result, result_of, run_rounds
from benchmarks.serve_options import ServeOptions
from benchmarks.span import Span
from benchmarks.stats import Slo
from benchmarks.targets import Target, prompt_tokens
from services.cli.cluster_plan import ClusterPlan
from services.cli.local_cluster import ClusterFailed
from services.common.checkpoint import resolve_checkpoint
from services.common.config import ConfigError

_MODEL = "demo"  # of which only the vocabulary is used
_SHAPE = Shape(Span(32, 32), Span(4, 4))
_WARMUPS = 64  # a frontend hedges once it knows what is usual
_SHOWN = ("median_ttft_ms", "p95_ttft_ms", "p99_ttft_ms", "hedged_requests", "completed", "failed")
_SIDES = ("plain", "hedged")


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a request failed, 2 where the processes could not be started."""
    given = _parser().parse_args(argv)
    try:
        results = asyncio.run(_measure(given))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    path = write_report("hedging", argv, given.out, {"results": results})
    show_rows([{"": name, **{key: found.get(key, "–") for key in _SHOWN}} for name, found in results.items()], path)
    return 1 if any(found["failed"] for found in results.values()) else 0


async def _measure(given: argparse.Namespace) -> dict[str, Result]:
    settings = {"colocated": 2, "frontend": 2}
    plan = freed(await local_plan("colocated", resolve_checkpoint(_MODEL), further=settings), given.step_ms)
    plan = _with_hedging(plan, given.factor)
    requests = make_plan(poisson_arrivals(given.rate, given.requests, 0), [_SHAPE], 0)
    options = ServeOptions(
        targets=given, plan=requests, rounds=given.rounds, warmups=_WARMUPS, seed=0, slo=Slo(), out=None, described={}
    )
    async with contextlib.AsyncExitStack() as stack:
        logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-bench-"))
        cluster = await stack.enter_async_context(running_cluster(plan, pathlib.Path(logs), given.start_timeout_s))
        targets: dict[str, Target] = {}
        for name, frontend in zip(_SIDES, plan.of_role("frontend"), strict=True):
            answers = FrontendAnswers(frontend.address)
            stack.push_async_callback(answers.close)
            targets[name] = Load(answers, given.timeout_s)
        pid = next(each.pid for each in cluster.processes if each.plan.role == "colocated" and each.pid is not None)
        await stack.enter_async_context(_stalls(pid, given.stall_s, given.every_s))
        with make_progress() as progress:
            found = await run_rounds(options, targets, prompt_tokens(_MODEL, _SHAPE.prompt_tokens.high), progress)
    return {name: result_of(options, runs) for name, runs in found.items()}


def _with_hedging(plan: ClusterPlan, factor: float) -> ClusterPlan:
    """The plan with a last frontend that hedges."""
    last = plan.of_role("frontend")[-1]
    hedging = dataclasses.replace(last, argv=(*last.argv, "--hedge-factor", str(factor)))
    return dataclasses.replace(plan, processes=tuple(hedging if each is last else each for each in plan.processes))


@contextlib.asynccontextmanager
async def _stalls(pid: int, stall_s: float, every_s: float) -> AsyncGenerator[None]:
    """Lets a process stand still for a while again and again; it runs afterwards."""

    async def stall() -> None:
        while True:
            await asyncio.sleep(every_s - stall_s)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(stall_s)
            os.kill(pid, signal.SIGCONT)

    task = asyncio.create_task(stall())
    try:
        yield
    finally:
        task.cancel()
        os.kill(pid, signal.SIGCONT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hedging",
        description="Asks two workers, of which one stands still now and then, with hedging and without.",
    )
    add = parser.add_argument
    add("--factor", type=positive, default=2.0, help="the --hedge-factor of the frontend that hedges (%(default)s)")
    add("--stall-s", type=positive, default=0.5, help="seconds for which a worker stands still (%(default)s)")
    add("--every-s", type=positive, default=8.0, help="seconds from one standstill to the next (%(default)s)")
    add("--step-ms", type=positive, default=20.0, help="time of a worker's step (%(default)s)")
    add("--rate", type=positive, default=20.0, help="requests per second, Poisson arrivals (%(default)s)")
    add("--requests", type=count, default=500, help="requests of a round (%(default)s)")
    add("--rounds", type=count, default=3, help="rounds; medians over them are shown (%(default)s)")
    add("--timeout-s", type=positive, default=60.0, help="deadline of each request (%(default)s)")
    add("--start-timeout-s", type=positive, default=120.0, help="time for the processes to become ready (%(default)s)")
    add_out(parser)
    return parser
