"""Measures decode steps: time per output token and tokens per second, by batch and context."""

import argparse
from collections.abc import Sequence

from benchmarks.flags import count, counts
from benchmarks.part import Found, run_part
from benchmarks.part_options import part_parser


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 2 where it cannot be measured or the cases do not fit."""
    return run_part("decode", argv, _parser().parse_args(argv), _measure)


def _measure(options: argparse.Namespace) -> Found:
    # Imported on demand: a worker is measured without torch.
    if options.address:
        from benchmarks import decode_worker

        return decode_worker.measure(options)
    from benchmarks import decode_engine

    return decode_engine.measure(options)


def _parser() -> argparse.ArgumentParser:
    parser = part_parser("decode", "Times decode steps of an engine alone, or of one decode or colocated worker.")
    parser.add_argument("--batches", type=counts, default="1,4,16,64", help="requests in a step (%(default)s)")
    parser.add_argument(
        "--contexts", type=counts, default="128,512,1024", help="tokens of each request in KV (%(default)s)"
    )
    parser.add_argument("--steps", type=count, default=16, help="steps that are timed for each case (%(default)s)")
    return parser
