"""The command line of the serving benchmark, and the plan that it asks for."""

import argparse
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.arrivals import at_once, poisson_arrivals
from benchmarks.flags import count, positive, whole
from benchmarks.part_options import add_out
from benchmarks.plan import Plan, Shape, make_plan, read_trace
from benchmarks.shapes import add_shapes, add_slo, describe_shapes, describe_slo, long_from, read_shapes, read_slo
from benchmarks.span import Span
from benchmarks.stats import Slo
from benchmarks.targets import add_targets
from benchmarks.workloads import WORKLOADS

DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What was asked for; `targets` holds the options of `add_targets`, `long_from` is that of `shapes`."""

    targets: argparse.Namespace
    plan: Plan
    rounds: int
    warmups: int
    seed: int
    slo: Slo
    out: pathlib.Path | None
    described: dict[str, object]
    long_from: int = 0


def parse_options(argv: Sequence[str]) -> ServeOptions:
    """Reads the command line; ends the process with a message where it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        plan = _plan(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return ServeOptions(
        targets=given,
        plan=plan,
        rounds=given.rounds,
        warmups=min(len(plan.requests), plan.concurrency or 4) if given.warmups is None else given.warmups,
        seed=given.seed,
        slo=read_slo(given),
        out=given.out,
        described=_described(given, plan),
        long_from=long_from(given) if _is_drawn(given) else 0,
    )


def _plan(given: argparse.Namespace) -> Plan:
    if given.trace is not None:
        with given.trace.open() as lines:
            return read_trace(lines)
    if given.workload is not None:
        preset = WORKLOADS[given.workload]
        prompt, output = (Span(tokens, tokens) for tokens in (preset.prompt_tokens, preset.output_tokens))
        return make_plan(at_once(preset.num_requests), [Shape(prompt, output)], given.seed, preset.num_requests)
    shapes = read_shapes(given)
    if given.rate is not None:
        return make_plan(poisson_arrivals(given.rate, given.requests, given.seed), shapes, given.seed)
    return make_plan(at_once(given.requests), shapes, given.seed, given.concurrency or DEFAULT_CONCURRENCY)


def _described(given: argparse.Namespace, plan: Plan) -> dict[str, object]:
    """The workload as the report tells it, with vLLM's names where it has them."""
    return {
        "model_id": given.model,
        "num_prompts": len(plan.requests),
        "request_rate": given.rate,
        "max_concurrency": plan.concurrency,
        **(describe_shapes(given) if _is_drawn(given) else {}),
        "trace": str(given.trace) if given.trace else None,
        "workload": given.workload,
        "seed": given.seed,
        "rounds": given.rounds,
        **describe_slo(given),
    }


def _is_drawn(given: argparse.Namespace) -> bool:
    """Whether lengths come of the options of `add_shapes`."""
    return given.trace is None and given.workload is None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serve",
        description="Sends the same requests to local clusters in turn (split and colocated ones), or to one frontend.",
    )
    add_targets(parser)
    add = parser.add_argument
    add("--requests", type=count, default=32, help="requests in a round (%(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--rate", type=positive, help="open loop: requests per second, Poisson arrivals")
    load.add_argument(
        "--concurrency", type=count, help=f"closed loop: requests at once; {DEFAULT_CONCURRENCY} if nothing"
    )
    load.add_argument("--trace", type=pathlib.Path, help="JSON lines with arrival_s, prompt_tokens, output_tokens")
    load.add_argument("--workload", choices=WORKLOADS, help="a fixed number of equal requests, all at once")
    add_shapes(parser)
    add("--rounds", type=count, default=3, help="rounds; the table has each figure's median over them (%(default)s)")
    add("--warmups", type=whole, help="requests before the first round, not counted; by default as many as run at once")
    add("--seed", type=int, default=0, help="of arrivals, lengths and prompts (%(default)s)")
    add_slo(parser)
    add_out(parser)
    return parser
