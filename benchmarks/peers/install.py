"""Makes a peer's virtual environment, and checkpoints in a peer's format."""

import hashlib
import os
import pathlib
import subprocess
import sys
import venv

from benchmarks.peers.catalog import Peer, Side, environment, python_of
from services.common.config import ConfigError

_PIP_TIMEOUT_S = 3600
_EXPORT_TIMEOUT_S = 1800


def install(peer: Peer, folder: pathlib.Path) -> None:
    """Installs a peer, where it is not installed yet.

    Raises:
        ConfigError: pip failed; the message has the end of what it said.
    """
    home = folder / peer.name
    stamp = home / "installed"
    if not peer.packages or stamp.exists():
        return
    venv.EnvBuilder(with_pip=True, symlinks=True, clear=home.exists()).create(str(home))
    pip = [str(python_of(peer, folder)), "-m", "pip"]
    env = {**os.environ, **peer.build_env}
    _run([*pip, "install", "-q", "--disable-pip-version-check", *peer.pip_options, *peer.packages], env, _PIP_TIMEOUT_S)
    if peer.unwanted:
        _run([*pip, "uninstall", "-q", "-y", *peer.unwanted], env, _PIP_TIMEOUT_S)
    stamp.write_text("\n".join(peer.packages) + "\n")


def check_installed(peer: Peer, folder: pathlib.Path) -> None:
    """Refuses a peer without an environment.

    Raises:
        ConfigError: says how to make one.
    """
    if not python_of(peer, folder).exists():
        raise ConfigError(f"{peer.name} is not in {folder}; run `python -m benchmarks peers --install` with it first")


def exported(side: Side, peer: Peer, checkpoint: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint in the format of a peer; made once and kept.

    Raises:
        ConfigError: it cannot be made; the message has the end of what the exporter said.
    """
    if peer.name not in ("openvino", "llamacpp"):
        return checkpoint
    suffix = ".gguf" if peer.name == "llamacpp" else ""
    kind = side.quantization or "bf16"
    target = folder / "models" / f"{checkpoint.name}-{_digest(checkpoint)}-{peer.name}-{kind}{suffix}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    env = environment(peer, folder, [0])
    python = python_of(peer, folder)
    if peer.name == "llamacpp":
        kind = "q8_0" if side.is_int8 else "bf16"
        _run(
            [str(python), "-m", "benchmarks.peers.gguf_export", str(checkpoint), str(target), kind],
            env, _EXPORT_TIMEOUT_S,
        )  # fmt: skip
        return target
    partial = target.with_name(target.name + ".partial")
    command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(checkpoint)]
    weights = "int8" if side.is_int8 else "fp16"
    options = ["--task", "text-generation-with-past", "--weight-format", weights, str(partial)]
    _run([*command, *options], env, _EXPORT_TIMEOUT_S)
    partial.rename(target)
    return target


def _digest(checkpoint: pathlib.Path) -> str:
    """Names a checkpoint by what its files look like, so that another one of the same name is exported anew."""
    found = hashlib.sha256((checkpoint / "config.json").read_bytes())
    for file in sorted(checkpoint.glob("*.safetensors")):
        status = file.stat()
        found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return found.hexdigest()[:8]


def _run(command: list[str], env: dict[str, str], timeout_s: float) -> None:
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{' '.join(command)} did not end well: {error}") from error
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-4000:])
        raise ConfigError(f"{' '.join(command)} ended with {done.returncode}; what it said is above")
