"""A row that fails on real processes leaves its complaints and the processes' logs, whatever ended it."""

from pathlib import Path

import pytest

from tests.fault.evidence import Evidence, Part, Record
from tests.fault.phases import IDLE
from tests.fault.row_report import RowReport
from tests.fault.scenario import Scenario


async def nothing(_: object) -> None:
    """A fault that does nothing."""


SCENARIO = Scenario(row="F0", name="nothing happens", phase=IDLE, fault=nothing)


def reported(folder: Path) -> RowReport:
    """A report of a row whose only process has said goodbye."""
    (folder / "cluster").mkdir()
    (folder / "cluster" / "prefill-0.log").write_text("goodbye\n")
    report = RowReport("F0", folder, folder / "reports")
    report.begin(SCENARIO.title)
    return report


def evidence(status: str) -> Evidence:
    """A run of one request."""
    record = Record(
        request_id="subject-1", part=Part.SUBJECT, frontend="frontend-0", started=0.0, deadline=9.0, expected={0: [1]},
        ended=1.0, status=status, tokens={0: [1]},
    )  # fmt: skip
    return Evidence(records=[record], recovered_at=1.0, rested_after_s=0.1)


def test_a_case_that_holds_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Where nothing is wrong, the row passes and tells its times."""
    report = reported(tmp_path)
    report.judge(SCENARIO, evidence("OK"))
    report.check()
    (line,) = report.lines
    assert line.startswith(f"{SCENARIO.title}: ok")
    assert report.path.read_text() == capsys.readouterr().out == f"{line}\n"


def test_complaints_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What is wrong, every request and the processes' logs are in the file, the rest in the output and the failure."""
    report = reported(tmp_path)
    report.judge(SCENARIO, evidence("INTERNAL"))
    with pytest.raises(AssertionError, match="subject-1 ended with INTERNAL"):
        report.check()
    assert "subject-1: INTERNAL" in report.path.read_text()
    for text in (report.path.read_text(), capsys.readouterr().out):
        assert "FAILED" in text
        assert "subject-1 ended with INTERNAL" in text
        assert "goodbye" in text


def test_what_ends_a_row_early_is_kept(tmp_path: Path):
    """An error in the middle of a case says in which one, and leaves the logs."""
    report = reported(tmp_path)
    with pytest.raises(TimeoutError), report.watching():
        raise TimeoutError("too long")
    text = report.path.read_text()
    assert f"{SCENARIO.title}: FAILED" in text
    assert "TimeoutError: too long" in text
    assert "goodbye" in text
