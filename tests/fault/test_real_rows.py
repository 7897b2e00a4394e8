"""Rows of the fault matrix on real processes: real signals, real sockets, real KV transfers."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault import rows
from tests.fault.play import play
from tests.fault.real_cluster import RealCluster, real_cluster
from tests.fault.row_report import LINE, RowReport
from tests.fault.scenario import Scenario

# Prompts of one case are not those of another one, on the same cluster.
NUMBERS = 100
# One row shows that the real cluster works; the others take too long for every change.
OFTEN = {"F1"}
# A row that takes longer has stuck somewhere.
ROW_S = 1200.0
CASES = [
    pytest.param(row, id=row[0].row, marks=pytest.mark.slow if row[0].row in OFTEN else pytest.mark.long)
    for row in rows.REAL
]


async def whole_again(cluster: RealCluster) -> None:
    """Starts again whoever is gone."""
    for name in set(cluster.starting) - set(cluster.names()):
        await cluster.start(name)
    await cluster.routable()


async def play_all(row: list[Scenario], folder: Path, report: RowReport) -> None:
    """Plays the cases, one after the other, those of one topology on one cluster."""
    number = 0
    for topology, scenarios in itertools.groupby(row, key=lambda each: each.topology):
        report.begin(f"{row[0].row} the cluster starts")
        async with real_cluster(topology, folder / f"cluster-{number}") as cluster:
            for scenario in scenarios:
                number += 1
                report.begin(scenario.title)
                report.judge(scenario, await play(scenario, cluster, number * NUMBERS))
                report.begin(f"{scenario.title}, afterwards")
                await whole_again(cluster)


@pytest.mark.timeout(ROW_S + 60)
@pytest.mark.parametrize("row", CASES)
async def test_row_on_real_processes(
    row: list[Scenario], tmp_path: Path, record_property: Callable[[str, object], None]
):
    """After every case of the row C1–C7 hold, and its requests end as they should."""
    report = RowReport(row[0].row, tmp_path)
    try:
        with report.watching():
            async with asyncio.timeout(ROW_S):
                await play_all(row, tmp_path, report)
    finally:
        for line in report.lines:
            record_property(LINE, line)
    report.check()
