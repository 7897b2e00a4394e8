"""What a row on real processes leaves for people: a line for each case; where one fails, its complaints and all logs.

All of it goes to the test's output and to `.baton/fault/ROW.txt`, which the next run of the row begins anew.
"""

import contextlib
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tests.fault.checks import complaints, moved_after_s
from tests.fault.evidence import Evidence, Record
from tests.fault.scenario import Scenario

# Under this name a line is a property of its test; `conftest.py` prints them all in the end.
LINE = "row"

FOLDER = Path(".baton/fault")
# Lines of each process's log: all that may matter go to the file.
SHOWN_LINES, KEPT_LINES = 12, 400


class RowReport:
    """The report of one row; `logs` is the folder of its processes' logs."""

    def __init__(self, row: str, logs: Path, folder: Path = FOLDER) -> None:
        self.path = folder / f"{row}.txt"
        self.lines: list[str] = []
        self.failures: list[str] = []
        self._logs = logs
        self._doing, self._began = row, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def begin(self, what: str) -> None:
        """Whatever happens from now on belongs to this."""
        self._doing = what
        self._began = time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Whatever ends the row early is written down and goes on."""
        try:
            yield
        except BaseException as error:
            self._say(f"{self._doing}: FAILED after {time.monotonic() - self._began:.1f} s, the rest was not played")
            self._fail("".join(traceback.format_exception(error)))
            raise

    def judge(self, scenario: Scenario, evidence: Evidence) -> None:
        """Writes down how the case that was begun last went; what is wrong with it becomes a failure of the row."""
        found = complaints(evidence, scenario.expect)
        took_s = time.monotonic() - self._began
        self._say(f"{self._doing}: {'FAILED' if found else 'ok'}, {took_s:.1f} s, {_times(evidence)}")
        if found:
            self._fail("\n".join(f"  {complaint}" for complaint in found))
            self._write(*(_story(record, evidence.faulted_at) for record in evidence.records))

    def check(self) -> None:
        """Fails with all failures of the row."""
        assert not self.failures, "\n".join([*self.failures, f"Logs of the processes: {self.path}"])

    def _say(self, line: str) -> None:
        self.lines.append(line)
        self._write(line)
        sys.stdout.write(f"{line}\n")

    def _fail(self, what: str) -> None:
        text = f"{self._doing}\n{what}"
        self.failures.append(text)
        self._write(text, *self._tails(KEPT_LINES))
        sys.stdout.write("\n".join([text, *self._tails(SHOWN_LINES), ""]))

    def _write(self, *parts: str) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{part}\n" for part in parts)

    def _tails(self, count: int) -> Iterator[str]:
        """The last lines of every log."""
        for path in sorted(self._logs.rglob("*.log")):
            with path.open(errors="replace") as lines:
                yield f"--- {path.name}\n{''.join(deque(lines, count))}"


def _story(record: Record, faulted_at: float) -> str:
    """One request in a line; seconds count from the fault."""
    ended = "never" if record.ended is None else f"{record.ended - faulted_at:.2f}"
    span = f"{record.started - faulted_at:.2f} to {ended} s"
    where = f"{record.frontend} {' '.join(record.workers)}, {record.moves} moves"
    return f"{record.request_id}: {record.status} {record.error} {record.message}, {span}, {where}"


def _times(evidence: Evidence) -> str:
    """When what happened, and how busy the machine was."""
    recovered = "never" if evidence.recovered_at is None else f"{evidence.recovered_at - evidence.faulted_at:.2f} s"
    parts = (
        f"phase reached after {evidence.reached_after_s:.1f} s",
        f"new request served after {recovered}",
        f"touched ones went on within {moved_after_s(evidence):.2f} s",
        _growth(evidence),
        f"load {os.getloadavg()[0]:.1f}",
    )
    return ", ".join(parts if evidence.is_timing_judged else (*parts, "times not judged"))


def _growth(evidence: Evidence) -> str:
    """The most that a process that lived through it has grown by."""
    pairs = [
        (evidence.before[name], after)
        for name, after in evidence.after.items()
        if name in evidence.before and evidence.before[name].incarnation == after.incarnation
    ]
    descriptors = max((after.descriptors - before.descriptors for before, after in pairs), default=0)
    threads = max((after.threads - before.threads for before, after in pairs), default=0)
    return f"at most {descriptors:+d} descriptors, {threads:+d} threads"
