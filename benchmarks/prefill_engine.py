"""Measures prompts on the engine alone: tokens per second by length and batch, against a matrix product.

A prompt takes two operations for each weight of a matrix and each token, the head once, and causal attention; the share
is how fast these were done, against one large matrix product in the same run.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

from benchmarks.case import Case, sweep
from benchmarks.engine_case import EngineCase, one_sample
from benchmarks.engine_turns import EngineTurns
from benchmarks.limits import gemm_flops
from benchmarks.part import Found
from services.engine.batch import BatchItem

_FIRST_TOKEN = 16


def measure(options: argparse.Namespace) -> Found:
    """A row for each length and batch, with medians over the rounds.

    Raises:
        ConfigError: the engine cannot be loaded, or a case does not fit its memory or the model.
    """
    cases = sweep(options.batches, options.lengths)
    turns = EngineTurns(options, (max(options.batches), max(options.lengths), options.step_tokens))
    for case in cases:
        for engine in turns.engines.values():
            engine.block_tables(case.batch, case.tokens)
            _prompt_s(engine, case, options.step_tokens)  # the first of a shape is slower and does not count
    return turns.measure("prefill", cases, lambda engine, case: _row(engine, case, options.step_tokens))


def prompt_flops(engine: EngineCase, case: Case) -> float:
    """Operations that the prompts of a case need at least; causal attention counts half of the square."""
    layout = engine.engine.layout
    tokens = case.batch * case.tokens
    attention = 2.0 * layout.num_layers * engine.num_heads * layout.head_dim * case.tokens**2 * case.batch
    return 2.0 * engine.weights.matrices * tokens + 2.0 * engine.weights.head * case.batch + attention


def chunks(case: Case, step_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """Steps of at most `step_tokens` tokens, prompts one after the other, as (request, start, end) pieces."""
    step: list[tuple[int, int, int]] = []
    left = step_tokens
    for request in range(case.batch):
        start = 0
        while start < case.tokens:
            end = min(case.tokens, start + left)
            step.append((request, start, end))
            left -= end - start
            start = end
            if left == 0:
                yield step
                step, left = [], step_tokens
    if step:
        yield step


def _row(engine: EngineCase, case: Case, step_tokens: int) -> dict[str, float]:
    limit = gemm_flops(engine.dtype, engine.device)
    seconds = _prompt_s(engine, case, step_tokens)
    flops = prompt_flops(engine, case) / seconds
    return {
        "batch": case.batch,
        "prompt_tokens": case.tokens,
        "prefill_ms": seconds * 1e3,
        "prompt_throughput": case.batch * case.tokens / seconds,
        "gflop_per_s": flops / 1e9,
        "gemm_gflop_per_s": limit / 1e9,
        "gemm_share": flops / limit,
    }


def _prompt_s(engine: EngineCase, case: Case, step_tokens: int) -> float:
    """Time from the first step to the first token of the last prompt."""
    tables = engine.block_tables(case.batch, case.tokens)
    vocab_size = engine.engine.limits.vocab_size
    prompt = [_FIRST_TOKEN + position % (vocab_size - _FIRST_TOKEN) for position in range(case.tokens)]
    steps = [[_item(prompt, tables[r], start, end) for r, start, end in step] for step in chunks(case, step_tokens)]
    began = time.perf_counter()
    for items in steps:
        engine.feed(items)
    return time.perf_counter() - began


def _item(prompt: Sequence[int], table: Sequence[int], start: int, end: int) -> BatchItem:
    samples = one_sample(0) if end == len(prompt) else ()
    return BatchItem(token_ids=prompt[start:end], start=start, block_ids=table, samples=samples)
