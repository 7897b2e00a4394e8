"""The command line of the serving benchmark, and the plan that it asks for."""

import argparse
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.arrivals import at_once, poisson_arrivals
from benchmarks.clusters import CLUSTERS
from benchmarks.flags import count, positive, span, whole
from benchmarks.plan import Plan, make_plan, read_trace
from benchmarks.span import Span
from benchmarks.stats import Slo
from benchmarks.workloads import WORKLOADS

DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What was asked for; `clusters` is unused where `address` names a frontend that runs."""

    model: str
    address: str
    clusters: tuple[str, ...]
    dtype: str
    plan: Plan
    rounds: int
    warmups: int
    seed: int
    slo: Slo
    timeout_s: float
    start_timeout_s: float
    out: pathlib.Path | None
    described: dict[str, object]


def parse_options(argv: Sequence[str]) -> ServeOptions:
    """Reads the command line; ends the process with a message where it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        plan = _plan(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return ServeOptions(
        model=given.model,
        address=given.address,
        clusters=given.clusters,
        dtype=given.dtype,
        plan=plan,
        rounds=given.rounds,
        warmups=min(len(plan.requests), plan.concurrency or 4) if given.warmups is None else given.warmups,
        seed=given.seed,
        slo=Slo(ttft_ms=given.slo_ttft_ms, tpot_ms=given.slo_tpot_ms),
        timeout_s=given.timeout_s,
        start_timeout_s=given.start_timeout_s,
        out=given.out,
        described=_described(given, plan),
    )


def _plan(given: argparse.Namespace) -> Plan:
    if given.trace is not None:
        with given.trace.open() as lines:
            return read_trace(lines)
    if given.workload is not None:
        preset = WORKLOADS[given.workload]
        spans = Span(preset.prompt_tokens, preset.prompt_tokens), Span(preset.output_tokens, preset.output_tokens)
        return make_plan(at_once(preset.num_requests), *spans, given.seed, preset.num_requests)
    spans = given.prompt_tokens, given.output_tokens
    if given.rate is not None:
        return make_plan(poisson_arrivals(given.rate, given.requests, given.seed), *spans, given.seed)
    return make_plan(at_once(given.requests), *spans, given.seed, given.concurrency or DEFAULT_CONCURRENCY)


def _described(given: argparse.Namespace, plan: Plan) -> dict[str, object]:
    """The workload as the report tells it, with vLLM's names where it has them."""
    drawn = given.trace is None and given.workload is None
    return {
        "model_id": given.model,
        "num_prompts": len(plan.requests),
        "request_rate": given.rate if drawn else None,
        "max_concurrency": plan.concurrency,
        "prompt_tokens": str(given.prompt_tokens) if drawn else None,
        "output_tokens": str(given.output_tokens) if drawn else None,
        "trace": str(given.trace) if given.trace else None,
        "workload": given.workload,
        "seed": given.seed,
        "rounds": given.rounds,
        "slo_ttft_ms": given.slo_ttft_ms,
        "slo_tpot_ms": given.slo_tpot_ms,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serve",
        description="Sends the same requests to a split and a colocated local cluster in turn, or to one frontend.",
    )
    add = parser.add_argument
    add("--model", default="demo", help="checkpoint: demo, a directory or a hub id (%(default)s)")
    add("--address", default="", metavar="HOST:PORT", help="measure this frontend and start nothing")
    add(
        "--clusters",
        type=_clusters,
        default=",".join(CLUSTERS),
        help=f"local clusters, of {','.join(CLUSTERS)} (%(default)s)",
    )
    add("--dtype", default="", help="element type of weights and KV in local clusters; empty: the workers' default")
    add("--requests", type=count, default=32, help="requests in a round (%(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rate", type=positive, help="open loop: requests per second, Poisson arrivals")
    load.add_argument(
        "--concurrency", type=count, help=f"closed loop: requests at once; {DEFAULT_CONCURRENCY} if nothing"
    )
    load.add_argument("--trace", type=pathlib.Path, help="JSON lines with arrival_s, prompt_tokens, output_tokens")
    load.add_argument("--workload", choices=WORKLOADS, help="a fixed number of equal requests, all at once")
    add("--prompt-tokens", type=span, default="256", help="length of prompts: a count or low:high (%(default)s)")
    add("--output-tokens", type=span, default="64", help="length of answers: a count or low:high (%(default)s)")
    add("--rounds", type=count, default=3, help="rounds; the table has each figure's median over them (%(default)s)")
    add("--warmups", type=whole, help="requests before the first round, not counted; by default as many as run at once")
    add("--seed", type=int, default=0, help="of arrivals, lengths and prompts (%(default)s)")
    add("--slo-ttft-ms", type=positive, help="target for the time to the first token")
    add("--slo-tpot-ms", type=positive, help="target for the time per further token")
    add("--timeout-s", type=positive, default=600.0, help="deadline of each request (%(default)s)")
    add(
        "--start-timeout-s",
        type=positive,
        default=300.0,
        help="time for each local cluster to become ready (%(default)s)",
    )
    add("--out", type=pathlib.Path, help="file for the results, as JSON; by default a new one in .baton/bench")
    return parser


def _clusters(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in CLUSTERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(CLUSTERS)}")
    return names
