"""Measures serving through the public API: the same requests to each target in turn, several rounds, medians.

Local clusters run side by side on the same cores, and only one is asked at a time. Every round has new prompts, the
same ones for every target, so that no prefix cache answers; the order of the targets turns round with each round, so
that a drift of the machine falls on all of them.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.load import Run
from benchmarks.plan import Plan, random_prompts
from benchmarks.progress import make_progress
from benchmarks.report import write_report
from benchmarks.serve_options import ServeOptions, parse_options
from benchmarks.stats import medians
from benchmarks.summary import STAGES, figures
from benchmarks.targets import Target, open_targets, prompt_tokens
from services.cli.local_cluster import ClusterFailed
from services.common.config import ConfigError

ROWS = {
    "completed": "completed requests",
    "failed": "failed requests",
    "colocated_requests": "requests that one worker ran alone, a round",
    "request_throughput": "requests/s",
    "output_throughput": "output tokens/s",
    "total_token_throughput": "all tokens/s",
    "median_ttft_ms": "TTFT median, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_tpot_ms": "TPOT median, ms",
    "p99_tpot_ms": "TPOT p99, ms",
    "median_itl_ms": "ITL median, ms",
    "p99_itl_ms": "ITL p99, ms",
    "median_e2el_ms": "end to end median, ms",
    "p99_e2el_ms": "end to end p99, ms",
    "short_median_ttft_ms": "  TTFT median of short requests, ms",
    "short_p99_itl_ms": "  ITL p99 of short requests, ms",
    "long_median_ttft_ms": "  TTFT median of long requests, ms",
    "long_p99_itl_ms": "  ITL p99 of long requests, ms",
    **{f"median_{stage}_ms": f"  stage {stage} median, ms" for stage in STAGES},
    "median_ttft_overhead_ms": "TTFT beyond queue and prefill, ms",
    "slo_attainment": "SLO attainment",
    "request_goodput": "good requests/s",
}
# Open-loop requests that left later than this say more about the load generator than about the target.
MAX_SEND_LAG_MS = 20.0

Rounds = dict[str, list[Run]]
Result = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a target completed nothing, 2 where it could not be started or asked."""
    options = parse_options(argv)
    try:
        found = asyncio.run(measure(options))
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    results = {name: result_of(options, runs) for name, runs in found.items()}
    path = write_report("serve", argv, options.out, {"workload": options.described, "results": results})
    show(results)
    sys.stdout.write(f"written to {path}\n")
    return 0 if all(result["completed"] for result in results.values()) else 1


async def measure(options: ServeOptions) -> Rounds:
    """Every run of every target, warm-up left out.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot hold the longest request.
        ClusterFailed: a local cluster did not become ready.
    """
    tokens = prompt_tokens(options.targets.model, options.plan.longest)
    async with open_targets(options.targets, options.plan.longest) as targets:
        with make_progress() as progress:
            return await run_rounds(options, targets, tokens, progress)


async def run_rounds(
    options: ServeOptions, targets: dict[str, Target], tokens: Sequence[int], progress: Progress
) -> Rounds:
    """Warms the targets up and runs the plan on each of them in turn; every run that counts."""
    found: Rounds = {name: [] for name in targets}
    warmup = Plan(options.plan.requests[: options.warmups], max(1, options.warmups))
    for index in range(-1 if warmup.requests else 0, options.rounds):
        plan = warmup if index < 0 else options.plan
        prompts = random_prompts(plan, tokens, f"prompts/{options.seed}/{index}")
        for name in list(targets) if index % 2 == 0 else reversed(targets):
            title = f"{name}: warm-up" if index < 0 else f"{name}: round {index + 1} of {options.rounds}"
            task = progress.add_task(title, total=len(plan.requests))
            run = await targets[name].run(plan, prompts, partial(progress.advance, task))
            if index >= 0:
                found[name].append(run)
    return found


def result_of(options: ServeOptions, runs: Sequence[Run]) -> Result:
    """Medians over the rounds, and each round; completed and failed requests are added up, so that none is hidden."""
    rounds = [figures(run, options.slo, options.long_from) for run in runs]
    errors = sum((run.errors for run in runs), Counter[str]())
    totals = {name: sum(each[name] for each in rounds) for name in ("completed", "failed")}
    return {**medians(rounds), **totals, "errors": dict(errors), "rounds": rounds}


def show(results: Mapping[str, Result]) -> None:
    """Prints a row for each figure, a column for each target, and the ratio of the first two targets."""
    table = Table("", box=None)
    for name in [*results, *(["ratio"] if len(results) == 2 else [])]:
        table.add_column(name, justify="right")
    for key, title in ROWS.items():
        values = [result[key] for result in results.values() if key in result]
        if len(values) == len(results):
            ratio = [f"{values[0] / values[1]:.2f}" if values[1] >= 0.01 else "–"] if len(values) == 2 else []
            table.add_row(
                title, *(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in values), *ratio
            )
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    for name, result in results.items():
        if result["errors"]:
            sys.stdout.write(f"{name}: failed with {result['errors']}\n")
        if result.get("max_send_lag_ms", 0.0) > MAX_SEND_LAG_MS:
            sys.stdout.write(f"{name}: requests left up to {result['max_send_lag_ms']:.0f} ms late; lower the rate\n")
