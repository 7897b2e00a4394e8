"""What figures were measured on: without it they mean nothing."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Taken when the process starts, before the benchmark's own load.
_LOAD_BEFORE = os.getloadavg()[0]
_PACKAGES = ("baton", "torch", "transformers", "grpcio", "protobuf")


def describe() -> dict[str, object]:
    """Processor, cores, memory, versions and commit; `load_average` is from before the benchmark."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "load_average": _LOAD_BEFORE,
    }


def _version(package: str) -> str:
    """Empty where it is not installed: measuring a remote frontend needs no torch."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
