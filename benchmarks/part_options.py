"""Options that the benchmarks of one tier share: of an engine in this process or of a running worker. Without torch."""

import argparse
import pathlib

from benchmarks.flags import count, positive, whole

# What the options of an engine are in each of `--engines`.
ENGINES: dict[str, dict[str, object]] = {
    "kernels": {"torch_only": False, "quantization": "none"},
    "torch": {"torch_only": True, "quantization": "none"},
    "int8": {"torch_only": False, "quantization": "int8"},
}


def part_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Options that the benchmarks of prefill and decode have."""
    parser = engine_parser(name, description)
    add = parser.add_argument
    add(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="measure this worker over gRPC and load nothing: what is said of an engine then counts for nothing",
    )
    add(
        "--engines",
        type=_engines,
        default="",
        help=f"measure several in turn instead of the one that is said: {','.join(ENGINES)}",
    )
    add("--timeout-s", type=positive, default=600.0, help="deadline of a request to a worker (%(default)s)")
    return parser


def engine_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Options of an engine in this process."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=description)
    add = parser.add_argument
    add("--model", default="demo", help="checkpoint: demo, a directory or a hub id (%(default)s)")
    add("--dtype", default="auto", help="element type of weights and KV (%(default)s)")
    add("--quantization", default="none", help="none or int8 (%(default)s)")
    add("--torch-only", action="store_true", help="without our own kernels")
    add("--cuda-graphs", action="store_true", help="decode steps as CUDA graphs")
    add("--device", default="auto", help="cpu, cuda, cuda:1 and so on (%(default)s)")
    add("--threads", type=whole, default=0, help="threads of torch; 0 leaves torch's own choice")
    add(
        "--rounds",
        type=count,
        default=3,
        help="times that every case and every limit is measured; medians are shown (%(default)s)",
    )
    add_out(parser)
    return parser


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where the report goes."""
    parser.add_argument(
        "--out", type=pathlib.Path, help="file for the results, as JSON; by default a new one in .baton/bench"
    )


def _engines(text: str) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else ()
    if unknown := [name for name in names if name not in ENGINES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ENGINES)}")
    return names
