"""Shows what the processes of a local cluster do: a live table while they start, then a line for every change.

Where the output is no terminal there is no table, only lines. Knows nothing of how processes are run.
"""

import re
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.cli.cluster_plan import ProcessPlan
from services.cli.cores import spell
from services.cli.launched import Change, Launched, State

_STYLES = {
    State.STARTING: "yellow",
    State.READY: "green",
    State.NOT_READY: "yellow",
    State.WAITING: "red",
    State.GIVEN_UP: "bold red",
    State.STOPPED: "dim",
}
_REFRESHES_PER_S = 4
_MAX_LOG_CHARS = 60
# In a line of a console log: the step that a process reports, else the name of the event.
_STEPS = (re.compile(r"\bstep='([^']*)'"), re.compile(r"\] (\w+)"))


class StatusView:
    """Prints changes as they come; between `begin` and `end` a terminal shows the table instead.

    Thread: the event loop's; rich refreshes the table on a thread of its own, which only reads.
    """

    def __init__(self, console: Console, *, has_table: bool = True) -> None:
        self._console = console
        self._has_table = has_table and console.is_terminal
        self._started = time.monotonic()
        self._plans: dict[str, ProcessPlan] = {}
        self._live: Live | None = None

    def begin(self, processes: Sequence[Launched]) -> None:
        """Shows the start of these processes."""
        self._plans = {process.plan.name: process.plan for process in processes}
        if self._has_table:
            self._live = Live(
                get_renderable=lambda: self._table(processes),
                console=self._console,
                refresh_per_second=_REFRESHES_PER_S,
            )
            self._live.start()

    def end(self) -> None:
        """Leaves the table as it is now; later changes are lines. Idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def changed(self, change: Change) -> None:
        """Takes note of a change of state."""
        if self._live is None or change.reason:
            self._print_change(change)

    def say(self, text: str) -> None:
        """Prints a line for the user."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _print_change(self, change: Change) -> None:
        plan = self._plans.get(change.process)
        where = f"{plan.address}{_place(plan)}" if plan and change.state is State.READY else ""
        line = Text(f"{time.monotonic() - self._started:6.1f} s  {change.process:<13}")
        line.append(f"{change.state.value:<12}", style=_STYLES[change.state])
        line.append(change.reason or where)
        self._console.print(line, soft_wrap=True)

    def _table(self, processes: Sequence[Launched]) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        elapsed = time.monotonic() - self._started
        for process in processes:
            lines = process.log_tail() if process.state is not State.READY else []
            doing = Text(_doing(lines[-1]) if lines else "", style="dim", no_wrap=True)
            state = Text(process.state.value, style=_STYLES[process.state])
            plan = process.plan
            table.add_row(plan.name, state, f"{plan.address}{_place(plan)}", doing)
        if any(process.state is not State.READY for process in processes):
            table.add_row(f"{elapsed:.0f} s", style="dim")
        return table


def _doing(line: str) -> str:
    found = next(filter(None, (pattern.search(line) for pattern in _STEPS)), None)
    return (found[1] if found else line)[:_MAX_LOG_CHARS]


def _place(plan: ProcessPlan) -> str:
    if plan.gpu is not None:
        return f"  GPU {plan.gpu}"
    if not plan.cores:
        return ""
    return f"  core{'s' if len(plan.cores) > 1 else ''} {spell(plan.cores)}"
