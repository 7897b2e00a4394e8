"""Runs every check that needs no running process; prints one line a check and the output of those that fail.

Run by `make check` with the environment's Python.
"""

import concurrent.futures
import pathlib
import subprocess
import sys
import sysconfig
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = pathlib.Path(sysconfig.get_path("scripts"))
TIMEOUT_S = 480
STREAMS = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
PARALLEL = 2  # the longest check, types, takes longer than all the others together

CHECKS: dict[str, list[str]] = {
    "types": [str(TOOLS / "pyright")],
    "lint": [str(TOOLS / "ruff"), "check", "--output-format", "concise", "."],
    "format": [str(TOOLS / "ruff"), "format", "--check", "."],
    "layers": [str(TOOLS / "lint-imports"), "--no-logo"],
    "protos": [str(TOOLS / "buf"), "lint"],
    "generated protos": [sys.executable, "scripts/gen_protos.py", "--check"],
    "generated docs": [sys.executable, "scripts/gen_docs.py", "--check"],
    "sizes": [sys.executable, "scripts/check_sizes.py"],
}


def run(name: str) -> bool:
    """Runs one check; True where it passed."""
    started = time.monotonic()
    try:
        done = subprocess.run(CHECKS[name], cwd=ROOT, timeout=TIMEOUT_S, text=True, **STREAMS)
        passed, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired:
        passed, output = False, f"took longer than {TIMEOUT_S} s"
    line = f"{'ok' if passed else 'FAILED':8}{name:20}{time.monotonic() - started:5.1f} s"
    print(line if passed else f"{line}\n{output}", flush=True)
    return passed


def main() -> None:
    """Runs the checks named on the command line, or all."""
    names = sys.argv[1:] or list(CHECKS)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        sys.exit(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        results = dict(zip(names, pool.map(run, names), strict=True))
    failed = [name for name, passed in results.items() if not passed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
