"""Measures each tier on a device with a random checkpoint of a real model's shape. The second half of `make gpu`.

Writes gpu-prefill.json, gpu-decode.json and gpu-transfer.json, and on CUDA gpu-decode-graphs.json, decode again with
CUDA graphs. The checkpoint is made once and kept in .baton.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks.random_checkpoint import SHAPES, make_checkpoint
from benchmarks.report import DEFAULT_FOLDER

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / ".baton" / "checkpoints"
RESULTS = ROOT / "benchmarks" / "results"
# Of one benchmark: an 8B model loads in a minute or two and runs its cases in another.
TIMEOUT_S = 1800
# Options of the benchmarks for a run that only shows that everything works.
QUICK = {
    "prefill": ("--lengths", "16", "--batches", "1", "--rounds", "1"),
    "decode": ("--contexts", "16", "--batches", "1,2", "--steps", "2", "--rounds", "1"),
    "transfer": ("--message-bytes", "64KiB", "--fetch-bytes", "1MiB", "--repeats", "1"),
}


def main(argv: Sequence[str]) -> int:
    """Measures everything; 2 where there is no such device, 1 where a benchmark failed."""
    options = _parser().parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("bench_gpu: torch sees no CUDA device; nothing was measured\n")
        return 2
    checkpoint = options.checkpoints / f"random-{options.shape}"
    sys.stderr.write(f"bench_gpu: random weights of shape {options.shape} in {checkpoint}\n")
    make_checkpoint(SHAPES[options.shape], checkpoint, options.device)
    done = {name: _bench(name, (), checkpoint, options) for name in QUICK}
    if options.device.startswith("cuda"):
        done["decode-graphs"] = _bench("decode", ("--cuda-graphs",), checkpoint, options)
    failed = [name for name, is_done in done.items() if not is_done]
    for name in failed:
        sys.stderr.write(f"bench_gpu: {name} failed; what it said is above\n")
    return 1 if failed else 0


def _bench(name: str, extra: Sequence[str], checkpoint: pathlib.Path, options: argparse.Namespace) -> bool:
    """Runs one benchmark in a process of its own, so that the device's memory is free for the next."""
    model = () if name == "transfer" else ("--model", str(checkpoint))
    quick = QUICK[name] if options.quick else ()
    is_trial = options.quick or not options.device.startswith("cuda")
    folder = options.results or (ROOT / DEFAULT_FOLDER if is_trial else RESULTS)
    out = folder / f"gpu-{name}{'-graphs' if extra else ''}.json"
    command = ["-m", "benchmarks", name, *model, "--device", options.device, *extra, *quick, "--out", str(out)]
    try:
        return subprocess.run([sys.executable, *command], cwd=ROOT, timeout=TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"bench_gpu: {name} took longer than {TIMEOUT_S} s\n")
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_gpu", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1 and so on, or cpu to try the script (%(default)s)")
    add("--shape", choices=tuple(SHAPES), default="8b", help="of the random checkpoint (%(default)s)")
    add("--results", type=pathlib.Path, help="folder for the JSON; benchmarks/results, or .baton/bench for a trial")
    add("--checkpoints", type=pathlib.Path, default=CHECKPOINTS, help="folder for the checkpoint")
    add("--quick", action="store_true", help="one small case of each")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
