"""Measures decode steps of one worker that runs: time per output token by batch and context, the service included.

The worker computes the prompts itself. Time is taken once every request of the batch decodes, until each has its
further tokens; then all are cancelled.
"""

import argparse
import asyncio
import itertools
import statistics

from benchmarks.case import Case, sweep
from benchmarks.part import Found, Rows
from benchmarks.progress import tracked
from benchmarks.running_worker import RunningWorker, running_worker
from benchmarks.stats import medians, percentile
from benchmarks.token_streams import TokenStreams
from services.common.config import ConfigError
from services.common.types import Tier
from services.decode.client import DecodeClient

WARM_TOKENS = 3
# The least tokens that a worker feeds in a step; while it feeds the last prompts, the first ones run ahead.
_LEAST_STEP_TOKENS = 256


def measure(options: argparse.Namespace) -> Found:
    """A row for each batch and context, with medians over the rounds.

    Raises:
        ConfigError: the worker is of the prefill tier, or a case does not fit it.
        BatonError: it could not be asked, or a request failed.
    """
    return asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> Found:
    cases = sweep(options.batches, options.contexts)
    async with running_worker(options) as worker:
        _check(worker, cases, options.steps)
        rounds: list[Rows] = []
        for _ in range(options.rounds):
            rounds.append([await _row(worker, case, options.steps) for case in tracked("decode", cases)])
    return {"worker": worker.describe()}, [medians(rows) for rows in zip(*rounds, strict=True)]


def _check(worker: RunningWorker, cases: list[Case], steps: int) -> None:
    if worker.info.tier is Tier.PREFILL:
        raise ConfigError(f"{worker.peer} is a prefill worker; name a decode or colocated one")
    if (most := max(case.batch for case in cases)) > worker.info.max_num_seqs:
        raise ConfigError(f"{worker.peer} runs {worker.info.max_num_seqs} requests at once, not {most}; ask for less")
    worker.check_length(max(case.tokens for case in cases) + WARM_TOKENS + steps)


async def _row(worker: RunningWorker, case: Case, steps: int) -> dict[str, float]:
    streams = TokenStreams(case.batch)
    longest = worker.info.max_model_len - case.tokens
    ahead = case.batch * (1 + case.tokens // _LEAST_STEP_TOKENS)
    requests = [worker.request(case.tokens, min(longest, WARM_TOKENS + steps + ahead)) for _ in range(case.batch)]
    client = DecodeClient(worker.channel, worker.peer)
    async with asyncio.timeout(worker.timeout_s):
        tasks = [asyncio.create_task(streams.follow(i, client.decode(each))) for i, each in enumerate(requests)]
        try:
            is_warm = await streams.reach([WARM_TOKENS] * case.batch)
            first = [len(times) for times in streams.arrivals]
            is_whole = is_warm and await streams.reach([begun + steps for begun in first])
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            client.close()
    if not is_whole:
        error = next((each for each in ended if isinstance(each, Exception)), None)
        raise error or ConfigError(f"a request ended before all {case.batch} ran at once; take fewer or shorter ones")
    windows = [times[begun - 1 : begun + steps] for times, begun in zip(streams.arrivals, first, strict=True)]
    return _figures(case, steps, windows, case.tokens + statistics.fmean(first) + steps / 2)


def _figures(case: Case, steps: int, windows: list[list[float]], mean_context: float) -> dict[str, float]:
    tpot = statistics.median((window[-1] - window[0]) / steps for window in windows)
    gaps = [after - before for window in windows for before, after in itertools.pairwise(window) if after > before]
    return {
        "batch": case.batch,
        "context": case.tokens,
        "mean_context": mean_context,
        "median_tpot_ms": tpot * 1e3,
        "p99_itl_ms": percentile(gaps, 0.99) * 1e3,
        "output_throughput": case.batch / tpot,
    }
