"""Rows of the fault matrix on real processes: real signals, real sockets, real KV transfers."""

import sys
from pathlib import Path

import pytest

from tests.fault import rows
from tests.fault.checks import moved_after_s
from tests.fault.evidence import Evidence
from tests.fault.play import judge, play
from tests.fault.real_cluster import RealCluster, real_cluster
from tests.fault.scenario import Scenario

# Prompts of one case are not those of another one, on the same cluster.
NUMBERS = 100
# One row shows that the real cluster works; the others take too long for every change.
OFTEN = {"F1"}
CASES = [
    pytest.param(row, id=row[0].row, marks=pytest.mark.slow if row[0].row in OFTEN else pytest.mark.long)
    for row in rows.REAL
]


async def whole_again(cluster: RealCluster) -> None:
    """Starts again whoever is gone."""
    for name in set(cluster.starting) - set(cluster.names()):
        await cluster.start(name)
    await cluster.routable()


def times(evidence: Evidence) -> str:
    """What a run shows of recovery, for people."""
    recovered_s = (evidence.recovered_at or 0.0) - evidence.faulted_at
    return f"new request served after {recovered_s:.2f} s, touched ones went on within {moved_after_s(evidence):.2f} s"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", CASES)
async def test_row_on_real_processes(row: list[Scenario], tmp_path: Path):
    """Every phase of the row on one cluster, one after the other: C1–C7 hold and requests end as they should."""
    async with real_cluster(row[0].topology, tmp_path) as cluster:
        for number, scenario in enumerate(row):
            evidence = await play(scenario, cluster, (number + 1) * NUMBERS)
            sys.stdout.write(f"{scenario.title}: {times(evidence)}\n")
            judge(scenario, evidence)
            await whole_again(cluster)
