"""What `make check` checks is also true in the test suite: protos, layers, generated files."""

import pathlib
import subprocess
import sys
import sysconfig

import pytest

from scripts import gen_docs

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = pathlib.Path(sysconfig.get_path("scripts"))
TIMEOUT_S = 100


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a tool in the root of the project."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_the_protos_keep_the_rules() -> None:
    """Buf finds nothing to complain about: style, comments, one request and response type per method."""
    done = run(str(TOOLS / "buf"), "lint")
    assert done.returncode == 0, done.stdout


def test_the_generated_protos_are_up_to_date() -> None:
    """Generating the Python of the protos again changes nothing."""
    done = run(sys.executable, "scripts/gen_protos.py", "--check")
    assert done.returncode == 0, done.stderr


def test_the_layers_hold() -> None:
    """Nobody imports what their layer may not: import-linter's contracts are kept."""
    done = run(str(TOOLS / "lint-imports"), "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout


def test_the_generated_docs_are_up_to_date() -> None:
    """Configuration, metrics and errors are documented as the code has them."""
    assert gen_docs.stale() == []


@pytest.mark.parametrize(
    "module",
    [
        "services.frontend.server",
        "services.cli.main",
        "services.kvtransfer.directory.server",
        "services.common.lifecycle",
    ],
)
def test_what_needs_no_torch_does_not_load_it(module: str) -> None:
    """Frontend, command and directory start without torch, transformers or a model."""
    code = f"import {module}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_engine_does_not_load_grpc() -> None:
    """The engine runs in a process that has no gRPC, protobuf or Prometheus."""
    forbidden = ("grpc", "google.protobuf", "prometheus_client")
    code = f"import services.engine.engine, sys; print([name for name in {forbidden} if name in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
