"""What `baton up` prints about its processes."""

import io
import pathlib

import pytest
from rich.console import Console

from services.cli.cluster_plan import ClusterSettings, plan_cluster
from services.cli.launched import Change, Launched, State
from services.cli.restarts import RestartPolicy
from services.cli.status_view import StatusView

PLAN = plan_cluster(ClusterSettings(counts={"prefill": 1, "decode": 1}), [0, 1, 2, 3], 0, lambda preferred: preferred)


@pytest.fixture
def processes(tmp_path: pathlib.Path) -> list[Launched]:
    """The plan's processes, none of them started."""
    return [
        Launched(process, tmp_path / f"{process.name}.log", RestartPolicy(), lambda change: None)
        for process in PLAN.processes
    ]


def view_on(*, is_terminal: bool) -> tuple[StatusView, io.StringIO]:
    """A view and what it prints."""
    printed = io.StringIO()
    return StatusView(Console(file=printed, force_terminal=is_terminal, width=100, no_color=True)), printed


def test_without_a_terminal_every_change_is_a_line(processes: list[Launched]) -> None:
    """A ready worker's line has its address and cores, a restart's line the reason."""
    view, printed = view_on(is_terminal=False)
    view.begin(processes)
    view.changed(Change("prefill-0", State.READY))
    view.changed(Change("decode-0", State.WAITING, "was killed by SIGKILL, starts again in 0.5 s"))
    view.end()
    ready, waiting = printed.getvalue().splitlines()
    assert ready.split()[2:] == ["prefill-0", "ready", "127.0.0.1:9100", "cores", "0-1"]
    assert "decode-0" in waiting
    assert "SIGKILL" in waiting


def test_a_terminal_shows_what_each_process_does(processes: list[Launched]) -> None:
    """While they start, the table has a row for each process with the step that it reports, until `end`."""
    processes[1].log_path.write_text("2026-01-01 [info     ] engine_loading [x] step='packed 29 linear layers'\n")
    view, printed = view_on(is_terminal=True)
    view.begin(processes)
    view.end()
    text = printed.getvalue()
    assert all(process.plan.name in text for process in processes)
    assert "packed 29 linear layers" in text
    view.changed(Change("prefill-0", State.READY))
    assert printed.getvalue().rstrip().endswith("cores 0-1")


def test_what_processes_say_is_not_markup() -> None:
    """Square brackets of a log line are printed as they are."""
    view, printed = view_on(is_terminal=False)
    view.say("decode-0 [red]not a colour[/red]")
    assert printed.getvalue() == "decode-0 [red]not a colour[/red]\n"
