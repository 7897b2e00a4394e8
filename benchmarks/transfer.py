"""Measures the handoff: set-up of a channel, latency and bytes per second, between two processes or from a worker."""

import argparse
from collections.abc import Sequence

from benchmarks.flags import byte_count, byte_counts, count, counts, positive
from benchmarks.part import Found, run_part
from benchmarks.part_options import add_out


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; 2 where nothing can be handed over."""
    return run_part("transfer", argv, _parser().parse_args(argv), _measure)


def _measure(options: argparse.Namespace) -> Found:
    if options.address:
        from benchmarks import transfer_worker

        return transfer_worker.measure(options)
    from benchmarks import transfer_local

    return transfer_local.measure(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transfer",
        description="Times the handoff of KV between two processes of this machine, or from a prefill worker to here.",
    )
    add = parser.add_argument
    add("--address", default="", metavar="HOST:PORT", help="fetch from this prefill worker and start nothing")
    add("--model", default="demo", help="with --address: from which vocabulary to draw prompts (%(default)s)")
    add("--lengths", type=counts, default="128,512,2048", help="with --address: tokens of a prompt (%(default)s)")
    add("--timeout-s", type=positive, default=600.0, help="with --address: deadline of a request (%(default)s)")
    add(
        "--message-bytes",
        type=byte_counts,
        default="64KiB,256KiB,1MiB,4MiB,8MiB",
        help="largest messages, such as 64KiB,1MiB (%(default)s); not with --address",
    )
    add("--fetch-bytes", type=byte_count, default="64MiB", help="KV of a large fetch (%(default)s); not with --address")
    add("--device", default="cpu", help="where the KV of both sides is (%(default)s); not with --address")
    add(
        "--transport",
        choices=("gloo", "nccl"),
        default="gloo",
        help="nccl needs a GPU for each side (%(default)s); not with --address",
    )
    add("--repeats", type=count, default=7, help="fetches and set-ups for each figure; medians are shown (%(default)s)")
    add("--no-checksum", action="store_true", help="neither hash nor verify messages")
    add_out(parser)
    return parser
