"""Builds the C++ files of this directory for this very machine and loads them, once for each machine and source.

The result is kept in the user's cache under a name that says from what it was made. Knows nothing of what is in it.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD_TIMEOUT_S = 120.0
# Sums may be reordered, for vectors; NaN and infinity are kept, because a request that meets them must fail.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)


class KernelsUnavailable(Exception):
    """The kernels cannot be had on this machine; says why."""


def load_library() -> ctypes.CDLL:
    """The kernels of this machine, built where they were not built before; takes seconds then.

    Raises:
        KernelsUnavailable: there is no compiler, it fails or takes longer than `BUILD_TIMEOUT_S`, or nothing can be
            written.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise KernelsUnavailable("no C++ compiler is installed; install g++ or set CXX")
    try:
        path = cache_directory() / f"kernels-{_build_key(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        raise KernelsUnavailable(f"{compiler} failed: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(str(error)) from error


def cache_directory() -> Path:
    """Where built kernels are kept; no other user can write there."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "baton"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.stat().st_mode & 0o022:
        raise KernelsUnavailable(f"{directory} can be written by others; make it yours alone (chmod 700)")
    return directory


def _build(compiler: str, path: Path) -> None:
    """Builds beside the path and moves the result there: a process that starts meanwhile finds all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / "kernels.so"
        command = [compiler, *FLAGS, "-o", str(built), *(str(source) for source in sorted(SOURCES.glob("*.cpp")))]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        built.replace(path)


def _build_key(compiler: str) -> str:
    """Names what the result depends on: sources, flags, compiler and processor."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(source.read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=10.0)
    digest.update(version.stdout)
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What tells processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
