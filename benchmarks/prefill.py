"""Measures prompts: tokens per second, by length and batch."""

import argparse
from collections.abc import Sequence

from benchmarks.flags import count, counts
from benchmarks.part import Found, run_part
from benchmarks.part_options import part_parser


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 2 where it cannot be measured or the cases do not fit."""
    return run_part("prefill", argv, _parser().parse_args(argv), _measure)


def _measure(options: argparse.Namespace) -> Found:
    # Imported on demand: a worker is measured without torch.
    if options.address:
        from benchmarks import prefill_worker

        return prefill_worker.measure(options)
    from benchmarks import prefill_engine

    return prefill_engine.measure(options)


def _parser() -> argparse.ArgumentParser:
    parser = part_parser("prefill", "Times prompts on an engine alone, or on one worker of any tier.")
    parser.add_argument("--lengths", type=counts, default="128,512,2048", help="tokens of each prompt (%(default)s)")
    parser.add_argument("--batches", type=counts, default="1,4", help="prompts at once (%(default)s)")
    parser.add_argument(
        "--step-tokens",
        type=count,
        default=2048,
        help="most tokens in a step, longer prompts are cut (%(default)s); not with --address",
    )
    return parser
