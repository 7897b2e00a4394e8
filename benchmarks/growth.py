"""Measures how costs grow: a decode step by context and by batch, planning by queue, the frontend's CPU by streams.

Each part is another benchmark's, over a range that shows the curve: the engine alone (`decode`), the schedulers alone
and a frontend with steps of a fixed time (`control`). Of each curve the exponent of its last stretch is told: 1 is
linear.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.case import sweep
from benchmarks.control import add_streams, paced
from benchmarks.decode_engine import measure_cases
from benchmarks.flags import count, counts
from benchmarks.growth_curves import exponents
from benchmarks.part_options import engine_parser
from benchmarks.progress import tracked
from benchmarks.report import show_rows, write_report
from benchmarks.scheduler_times import scheduler_row
from services.cli.local_cluster import ClusterFailed
from services.common.config import ConfigError


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 1 where a request failed, 2 where something could not be started or does not fit."""
    given = _parser().parse_args(argv)
    try:
        found = _measure(given)
    except (ConfigError, ClusterFailed) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 2
    found["exponents"] = exponents(found)
    path = write_report("growth", argv, given.out, found)
    show_rows([{"cost": name, "exponent": value} for name, value in found["exponents"].items()], path)
    return 1 if any(row["failed"] for row in found["streams"]) else 0


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    by_context = sweep(given.context_batches, given.contexts)
    by_batch = sweep(given.batches, (given.batch_context,))
    what, rows = measure_cases(given, [*by_context, *by_batch])
    return {
        **what,
        "contexts": rows[: len(by_context)],
        "batches": rows[len(by_context) :],
        "schedulers": [scheduler_row(queued) for queued in tracked("schedulers", given.queued)],
        "streams": asyncio.run(paced(given)),
    }


def _parser() -> argparse.ArgumentParser:
    parser = engine_parser("growth", "Times what grows with context, batch, queue and streams, and tells how it grows.")
    add = parser.add_argument
    add("--contexts", type=counts, default="128,256,512,1024,2048,3968", help="tokens in KV (%(default)s)")
    add("--context-batches", type=counts, default="1,16", help="requests in a step of each context (%(default)s)")
    add("--batches", type=counts, default="1,2,4,8,16,32,64", help="requests in a step (%(default)s)")
    add("--batch-context", type=count, default=512, help="tokens of each in KV (%(default)s)")
    add("--steps", type=count, default=16, help="steps that are timed for each case (%(default)s)")
    add_streams(parser, output_tokens=160, step_ms=50.0)
    # One engine; and one answer of each stream, so that every row takes as long.
    parser.set_defaults(engines=(), requests=1, turns=1)
    return parser
