"""Measures prompts on one worker that runs, of any tier: tokens per second by length and batch, the service included.

All prompts of a case are sent at once, each for one token; time is taken until the last token has come.
"""

import argparse
import asyncio
import contextlib
import statistics
import time

from benchmarks.case import Case, sweep
from benchmarks.part import Found, Rows
from benchmarks.progress import tracked
from benchmarks.running_worker import RunningWorker, running_worker
from benchmarks.stats import medians
from services.common.types import StageTimes, Tier, WorkRequest
from services.decode.client import DecodeClient
from services.prefill.client import PrefillClient


def measure(options: argparse.Namespace) -> Found:
    """A row for each length and batch, with medians over the rounds.

    Raises:
        ConfigError: a case does not fit the worker.
        BatonError: it could not be asked, or a request failed.
    """
    return asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> Found:
    cases = sweep(options.batches, options.lengths)
    async with running_worker(options) as worker:
        worker.check_length(max(options.lengths) + 1)
        for case in cases:
            await _row(worker, case)  # the first of a shape is slower and does not count
        rounds: list[Rows] = []
        for _ in range(options.rounds):
            rounds.append([await _row(worker, case) for case in tracked("prefill", cases)])
    return {"worker": worker.describe()}, [medians(rows) for rows in zip(*rounds, strict=True)]


async def _row(worker: RunningWorker, case: Case) -> dict[str, float]:
    requests = [worker.request(case.tokens, 1) for _ in range(case.batch)]
    began = time.perf_counter()
    stages = await asyncio.gather(*(_first_token(worker, request) for request in requests))
    seconds = time.perf_counter() - began
    return {
        "batch": case.batch,
        "prompt_tokens": case.tokens,
        "prefill_ms": seconds * 1e3,
        "prompt_throughput": case.batch * case.tokens / seconds,
        "median_queue_ms": statistics.median(each.queue_ns for each in stages) / 1e6,
        "median_prefill_ms": statistics.median(each.prefill_ns for each in stages) / 1e6,
    }


async def _first_token(worker: RunningWorker, request: WorkRequest) -> StageTimes:
    """Runs a prompt to its first token; a decode or colocated worker computes it as its own."""
    if worker.info.tier is Tier.PREFILL:
        return (await PrefillClient(worker.channel, worker.peer).prefill(request)).stages
    stages = StageTimes()
    with contextlib.closing(DecodeClient(worker.channel, worker.peer)) as client:
        async for event in client.decode(request):
            stages = event.summary.stages if event.summary else stages
    return stages
