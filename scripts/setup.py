"""Creates .venv and installs Baton into it, editable, with exactly the versions of constraints.txt.

Run by `make setup` with whatever Python is there; needs nothing but the standard library and pip. Does nothing when the
environment is up to date: a stamp in .venv holds a digest of all that went into it.

torch is special: on Linux PyPI carries its CUDA build (several GB). Without an NVIDIA GPU the CPU build is taken from
torch's own index where that can be reached; elsewhere pip's configured index decides.
"""

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "baton-setup.stamp"
CONSTRAINTS = ROOT / "constraints.txt"
INPUTS = (ROOT / "pyproject.toml", CONSTRAINTS, pathlib.Path(__file__))
EXTRAS = "engine,dev"
MINIMUM = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_TIMEOUT_S = 3
PIP_TIMEOUT_S = 1800


def say(message: str) -> None:
    """Prints one line at once, so that it stands before what a child process prints."""
    print(message, flush=True)


def use_new_enough_python() -> None:
    """Replaces this process by a newer Python where this one is too old and a newer one is installed."""
    if sys.version_info >= MINIMUM:
        return
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", "import venv"], stderr=subprocess.DEVNULL).returncode == 0:
            os.execv(found, [found, *sys.argv])
    version = platform.python_version()
    sys.exit(f"Baton needs Python 3.11 or newer, this is {version}; try `make setup PYTHON=/path/to/a/newer/python`")


def digest() -> str:
    """Names the state that the environment should be in."""
    parts = [sys.version.encode(), str(ROOT).encode(), EXTRAS.encode(), str(has_gpu()).encode()]
    parts += [path.read_bytes() for path in INPUTS]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_up_to_date(wanted: str) -> bool:
    """True where the stamp matches and the environment's Python still starts."""
    if not STAMP.exists() or STAMP.read_text().strip() != wanted:
        return False
    return subprocess.run([str(PYTHON), "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


def create_environment() -> None:
    """Makes .venv, over a broken one or one of another Python if need be."""
    if PYTHON.exists():
        probe = [str(PYTHON), "-c", "import pip, sys; print(sys.version)"]
        made_by = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if made_by.returncode == 0 and made_by.stdout.strip() == sys.version.strip():
            return
    say(f"creating .venv with Python {platform.python_version()}")
    try:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(str(VENV))
    except (subprocess.CalledProcessError, OSError) as error:
        hint = "Debian and Ubuntu keep venv in a package of its own: apt-get install python3-venv"
        sys.exit(f"creating .venv failed ({error}); {hint}")


def has_gpu() -> bool:
    """True where an NVIDIA driver is installed."""
    return shutil.which("nvidia-smi") is not None


def can_reach(url: str) -> bool:
    """True where the index answers soon."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_TIMEOUT_S):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def has_torch() -> bool:
    """True where the environment has the torch of constraints.txt, from whatever index."""
    probe = "import importlib.metadata as metadata; print('torch==' + metadata.version('torch').split('+')[0])"
    found = subprocess.run([str(PYTHON), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.returncode == 0 and found.stdout.strip() in CONSTRAINTS.read_text().split()


def pip_install(*arguments: str) -> None:
    """Installs with the versions of constraints.txt; shows pip's output only where it fails."""
    quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    command = [str(PYTHON), "-m", "pip", "install", *quiet, "-c", str(CONSTRAINTS), *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, cwd=str(ROOT), text=True, timeout=PIP_TIMEOUT_S, **streams)
    except subprocess.TimeoutExpired:
        sys.exit(f"pip took longer than {PIP_TIMEOUT_S} s; check the network and run `make setup` again")
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\npip failed, its output is above; the command was: {' '.join(command)}")


def install_torch_for_cpu() -> None:
    """Takes torch's CPU build from torch's own index on Linux machines without a GPU."""
    if sys.platform != "linux" or has_gpu() or has_torch():
        return
    if not can_reach(CPU_INDEX + "/torch/"):
        say(f"{CPU_INDEX} cannot be reached: torch comes from pip's own index, where it may be the large CUDA build")
        return
    say("installing torch's CPU build")
    pip_install("--no-deps", "--index-url", CPU_INDEX, "torch")


def install_plots() -> None:
    """Adds what benchmarks draw with; they measure without it, so that a failure ends nothing."""
    probe = [str(PYTHON), "-c", "import importlib.util, sys; sys.exit(not importlib.util.find_spec('matplotlib'))"]
    if subprocess.run(probe).returncode == 0:
        return
    say("installing what plots are drawn with")
    try:
        pip_install("-e", ".[bench]")
    except SystemExit as error:
        say(f"there will be no plots: {error}")


def main() -> None:
    """Brings .venv up to date, or finds that it is; `--plots` adds what benchmarks draw with."""
    use_new_enough_python()
    if sys.argv[1:] == ["--plots"]:
        install_plots()
        return
    wanted = digest()
    if is_up_to_date(wanted):
        return
    started = time.monotonic()
    create_environment()
    if STAMP.exists():
        STAMP.unlink()
    install_torch_for_cpu()
    say("installing Baton and what it needs into .venv (minutes on the first run)")
    pip_install("-e", f".[{EXTRAS}]")
    STAMP.write_text(wanted + "\n")
    say(f"set up in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
