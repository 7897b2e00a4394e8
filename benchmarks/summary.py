"""Sums a run up under the names that vLLM's serving benchmark uses. Pure.

TTFT is from sending a request to its first token; TPOT is (last - first) / (tokens - 1) of one request; ITL are the
gaps between arrivals of tokens, where tokens that came in one message are one arrival; E2EL is from sending to the last
token. The stages are those that each response tells of itself.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import Protocol

from benchmarks.load import Run, Timing
from benchmarks.stats import Latency, Slo, attainment, distribution, percentile

__all__ = ["STAGES", "figures", "percentile", "summarize"]

STAGES = ("queue", "prefill", "handoff", "admission", "decode")
_MS = 1000.0


class Asked(Protocol):
    """What a run was asked to do, as far as its figures need it."""

    @property
    def prompt_tokens(self) -> float:
        """Tokens of a prompt, on average."""
        ...


class _MeanPrompt:
    """Stands for prompts of different lengths."""

    def __init__(self, timings: Sequence[Timing]) -> None:
        self.prompt_tokens = statistics.fmean(timing.usage.prompt_tokens for timing in timings)


def figures(run: Run, slo: Slo, long_from: int = 0) -> dict[str, float]:
    """Every figure of a run; latencies and throughputs are of completed requests, and missing where there is none.

    Args:
        run: what came of the requests.
        slo: targets for their latencies.
        long_from: tokens of a prompt from which on a request counts as long; latencies are told of short and of long
            ones, too. 0 tells none apart.
    """
    failed = run.errors.total()
    completed = len(run.timings)
    found: dict[str, float] = {"completed": completed, "failed": failed, "duration": run.ended}
    if completed:
        found |= summarize(_MeanPrompt(run.timings), run.timings, run.ended) | _totals(run)
    if long_from:
        found |= _apart(run.timings, long_from)
    if slo != Slo():
        found["slo_attainment"] = attainment(slo, [latency(timing) for timing in run.timings], completed + failed)
        found["request_goodput"] = found["slo_attainment"] * (completed + failed) / run.ended
    return found


def latency(timing: Timing) -> Latency:
    """How one request went."""
    gaps = _gaps(timing)
    return Latency(_ttft(timing) * _MS, _tpot_ms(timing), max(gaps) * _MS if gaps else None)


def summarize(workload: Asked, timings: Sequence[Timing], ended: float = 0.0) -> dict[str, float]:
    """Latencies in milliseconds and throughputs per second of completed requests, at least one.

    Args:
        workload: what was asked.
        timings: what came of it.
        ended: when the last request ended, failed ones included; by default with the last token.
    """
    duration = max(ended, *(timing.tokens[-1] for timing in timings))
    found = {
        "duration_s": duration,
        "request_throughput": len(timings) / duration,
        "output_throughput": sum(len(timing.tokens) for timing in timings) / duration,
        "prompt_throughput": len(timings) * workload.prompt_tokens / max(timing.tokens[0] for timing in timings),
    }
    found |= _latencies(timings)
    for stage in STAGES:
        found[f"median_{stage}_ms"] = statistics.median(_stage_ms(timing, stage) for timing in timings)
    return found


def _latencies(timings: Sequence[Timing]) -> dict[str, float]:
    found = distribution("ttft_ms", [_ttft(timing) * _MS for timing in timings])
    found |= distribution("tpot_ms", [tpot for timing in timings if (tpot := _tpot_ms(timing)) is not None])
    found |= distribution("itl_ms", [gap * _MS for timing in timings for gap in _gaps(timing)])
    return found | distribution("e2el_ms", [(timing.tokens[-1] - timing.sent) * _MS for timing in timings])


def _apart(timings: Sequence[Timing], long_from: int) -> dict[str, float]:
    """Latencies of short and of long requests under names of their own."""
    found: dict[str, float] = {}
    for name, is_long in (("short", False), ("long", True)):
        chosen = [timing for timing in timings if (timing.usage.prompt_tokens >= long_from) is is_long]
        found[f"{name}_completed"] = len(chosen)
        found |= {f"{name}_{key}": value for key, value in _latencies(chosen).items()}
    return found


def _totals(run: Run) -> dict[str, float]:
    """Counts, and how much of TTFT is neither queue nor prefill: what the way and the handoff add."""
    prompt = sum(timing.usage.prompt_tokens for timing in run.timings)
    output = sum(len(timing.tokens) for timing in run.timings)
    added = [_ttft(each) * _MS - _stage_ms(each, "queue") - _stage_ms(each, "prefill") for each in run.timings]
    return {
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "total_cached_tokens": sum(timing.usage.cached_tokens for timing in run.timings),
        "colocated_requests": sum(timing.colocated for timing in run.timings),
        "hedged_requests": sum(timing.hedged for timing in run.timings),
        "total_token_throughput": (prompt + output) / run.ended,
        "median_ttft_overhead_ms": statistics.median(added),
        "max_send_lag_ms": max(timing.lag for timing in run.timings) * _MS,
    }


def _ttft(timing: Timing) -> float:
    return timing.tokens[0] - timing.sent


def _tpot_ms(timing: Timing) -> float | None:
    if len(timing.tokens) < 2:
        return None
    return (timing.tokens[-1] - timing.tokens[0]) / (len(timing.tokens) - 1) * _MS


def _gaps(timing: Timing) -> list[float]:
    return [after - before for before, after in itertools.pairwise(timing.tokens) if after > before]


def _stage_ms(timing: Timing, stage: str) -> float:
    return getattr(timing.stages, f"{stage}_ns") / 1e6
