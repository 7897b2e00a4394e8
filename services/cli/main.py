"""The `baton` command: starts processes, and talks to running ones through their clients. Never imports torch."""

import importlib.util
import os
import sys
from typing import Any, NoReturn

import typer

from services.cli import drain, generate, health, role, secure, status, up
from services.common import version as software

_ENGINE_MODULES = ("services.prefill", "services.decode")

_PASS_ON: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}
_RUN = "Run one process"

app = typer.Typer(
    name="baton",
    help="Serves large language models with prefill and decode in separate gRPC services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command(name="up", **_PASS_ON)
def run_up(context: typer.Context) -> None:
    """Start a local cluster, one process each; Ctrl-C stops it."""
    sys.exit(up.main(context.args))


@app.command(name="bench", **_PASS_ON)
def run_bench(context: typer.Context) -> None:
    """Measure a cluster, one tier or the handoff; see `baton bench --help`."""
    if context.parent is not None:
        os.environ.update(secure.as_variables(context.parent.params))
    _become("benchmarks", context.args)


app.callback()(secure.secure)
app.command(name="generate")(generate.generate)
app.command(name="status")(status.status)
app.command(name="health")(health.health)
app.command(name="drain")(drain.drain)
app.command(name="role")(role.role)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(software.version())


@app.command(rich_help_panel=_RUN, **_PASS_ON)
def frontend(context: typer.Context) -> None:
    """Run a frontend; all flags are its own, see `baton frontend --help`."""
    _become("services.frontend", context.args)


@app.command(rich_help_panel=_RUN, **_PASS_ON)
def prefill(context: typer.Context) -> None:
    """Run a prefill worker; all flags are its own, see `baton prefill --help`."""
    _become("services.prefill", context.args)


@app.command(rich_help_panel=_RUN, **_PASS_ON)
def decode(context: typer.Context) -> None:
    """Run a decode worker; all flags are its own, see `baton decode --help`."""
    _become("services.decode", context.args)


@app.command(rich_help_panel=_RUN, **_PASS_ON)
def kvtransfer(context: typer.Context) -> None:
    """Run the directory; all flags are its own, see `baton kvtransfer --help`."""
    _become("services.kvtransfer.directory", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    """Replaces this process, so that signals and the exit code are the service's own; it may need torch, we do not."""
    if module in _ENGINE_MODULES and importlib.util.find_spec("torch") is None:
        typer.echo("baton: workers need torch, which is not installed; pip install 'baton[engine]'", err=True)
        raise SystemExit(2)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def main() -> None:
    """Entry point of the `baton` script."""
    # gRPC's core reports every lost connection on standard error; we report it ourselves, typed. Children inherit it.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app(prog_name="baton")
