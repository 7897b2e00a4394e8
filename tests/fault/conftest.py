"""Prints, after everything else, what the rows on real processes say of themselves."""

import pytest

from tests.fault.row_report import LINE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each case that was played, with its times."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    lines = [line for report in reports for key, line in report.user_properties if key == LINE]
    if lines:
        terminalreporter.section("rows on real processes")
        for line in lines:
            terminalreporter.write_line(str(line))
