"""Measures decode steps of the engine alone: time per output token by batch and context, against the machine's limits.

A step reads every weight once and the KV of every request, and takes two operations for each weight of a matrix and
each request, and attention. The shares are how fast it read and computed, against a plain sum of as many bytes and one
large matrix product in the same run; no step can be faster than either allows, so that the larger share counts.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from benchmarks.case import Case, sweep
from benchmarks.engine_case import EngineCase, one_sample
from benchmarks.engine_turns import EngineTurns
from benchmarks.limits import gemm_flops, read_bandwidth
from benchmarks.part import Found
from services.engine.batch import BatchItem

WARM_STEPS = 2
_FIRST_TOKEN = 16


def measure(options: argparse.Namespace) -> Found:
    """A row for each batch and context, with medians over the rounds.

    Raises:
        ConfigError: the engine cannot be loaded, or a case does not fit its memory or the model.
    """
    return measure_cases(options, sweep(options.batches, options.contexts))


def measure_cases(options: argparse.Namespace, cases: Sequence[Case]) -> Found:
    """The same for cases that are no full grid; `options.batches` and `options.contexts` do not count."""
    steps = WARM_STEPS + options.steps
    most = max(case.batch for case in cases)
    turns = EngineTurns(options, (most, max(case.tokens for case in cases) + steps, most))
    for case in cases:
        for engine in turns.engines.values():
            engine.block_tables(case.batch, case.tokens + steps)
    return turns.measure("decode", cases, lambda engine, case: _row(engine, case, options.steps))


def _row(engine: EngineCase, case: Case, steps: int) -> dict[str, float]:
    tpot = _step_s(engine, case, steps)
    token_bytes = engine.engine.layout.token_elements * engine.dtype.itemsize
    mean_context = case.tokens + WARM_STEPS + steps / 2
    step_bytes = round(engine.weight_bytes + case.batch * mean_context * token_bytes)
    limit = read_bandwidth(step_bytes, engine.device)
    flops = step_flops(engine, case.batch, mean_context) / tpot
    gemm = gemm_flops(engine.dtype, engine.device)
    return {
        "batch": case.batch,
        "context": case.tokens,
        "median_tpot_ms": tpot * 1e3,
        "output_throughput": case.batch / tpot,
        "step_mb": step_bytes / 1e6,
        "read_gb_per_s": step_bytes / tpot / 1e9,
        "limit_gb_per_s": limit / 1e9,
        "bandwidth_share": step_bytes / tpot / limit,
        "gflop_per_s": flops / 1e9,
        "gemm_gflop_per_s": gemm / 1e9,
        "gemm_share": flops / gemm,
        "limit_share": max(step_bytes / tpot / limit, flops / gemm),
    }


def step_flops(engine: EngineCase, batch: int, context: float) -> float:
    """Operations that a step needs at least, for so many requests with so many tokens in KV each."""
    layout = engine.engine.layout
    attention = 4.0 * layout.num_layers * engine.num_heads * layout.head_dim * context
    return batch * (2.0 * (engine.weights.matrices + engine.weights.head) + attention)


def _step_s(engine: EngineCase, case: Case, steps: int) -> float:
    """Median time of a step that follows the one before, as in serving: each feeds what the last one sampled."""
    tables = engine.block_tables(case.batch, case.tokens + WARM_STEPS + steps)
    fed = [_FIRST_TOKEN] * case.batch
    times: list[float] = []
    for index in range(WARM_STEPS + steps):
        items = [
            BatchItem(token_ids=(token,), start=case.tokens + index, block_ids=table, samples=one_sample(index))
            for token, table in zip(fed, tables, strict=True)
        ]
        began = time.perf_counter()
        results = engine.feed(items)
        times.append(time.perf_counter() - began)
        fed = [result.tokens[0].id for result in results]
    return statistics.median(times[WARM_STEPS:])
