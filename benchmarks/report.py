"""Where results go: a JSON file that says by which command and on which machine it came about, and its plot."""

import datetime
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.plot import MISSING, draw

# Ignored by git: what is worth keeping is named with --out.
DEFAULT_FOLDER = pathlib.Path(".baton/bench")


def write_report(
    benchmark: str, argv: Sequence[str], out: pathlib.Path | None, content: Mapping[str, object]
) -> pathlib.Path:
    """Writes what was found, draws it beside where it can be drawn, and returns where it was written.

    Args:
        benchmark: the word after `python -m benchmarks`.
        argv: its command line.
        out: the file; by default a new one in `DEFAULT_FOLDER`.
        content: further entries of the JSON object.
    """
    now = datetime.datetime.now(datetime.UTC)
    path = out or DEFAULT_FOLDER / f"{benchmark}-{now:%Y%m%d-%H%M%S}.json"
    report = {
        "benchmark": benchmark,
        "date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "command": shlex.join(["python", "-m", "benchmarks", benchmark, *argv]),
        "machine": machine.describe(),
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    sys.stderr.write(f"{draw(report, path) or MISSING}\n")
    return path


def show_rows(rows: Sequence[Mapping[str, object]], path: pathlib.Path) -> None:
    """Prints one line a row, and where the report is."""
    table = Table(*(str(name) for name in rows[0]), box=None)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True, highlight=False)
