"""Minutes of random faults on a simulated cluster, and shortly on real processes."""

import dataclasses
from pathlib import Path

import pytest

from tests.fault.real_cluster import real_cluster
from tests.fault.scenario import Topology
from tests.fault.simulated_cluster import simulated_cluster
from tests.fault.soak import CHURNING, TOPOLOGY, Soak
from tests.fault.soak_report import Report
from tests.harness.virtual_time import VirtualClock, run_virtually


def simulated(minutes: float, seed: int, rate: float, topology: Topology = TOPOLOGY, *, only: str = "") -> Report:
    """A soak on virtual time."""

    async def main(clock: VirtualClock) -> Report:
        async with simulated_cluster(topology, clock, seed) as cluster:
            return await Soak(cluster, seed, rate, is_churn=topology is CHURNING, only=only).run(minutes * 60)

    return run_virtually(main)


def test_a_virtual_minute_of_random_faults():
    """Every request ends in time and right, and nothing is left."""
    report = simulated(1, seed=3, rate=2)
    assert not report.complaints, report.text()


def test_some_virtual_seconds_of_hurt_transfers():
    """KV that is hurt on its way is noticed, and costs no request its answer."""
    report = simulated(0.2, seed=3, rate=2, only="messages of KV hurt")
    assert report.refetches > 0, report.text()
    assert not report.complaints, report.text()


def test_requests_that_killed_workers_cost_are_found():
    """Negative control: where requests may not move, those on a killed worker fail, and nothing excuses them."""
    topology = dataclasses.replace(TOPOLOGY, flags={"frontend": {"max-moves": "0"}})
    report = simulated(0.3, seed=3, rate=40, topology=topology, only="SIGKILL of a decode worker")
    assert any("which does not excuse it" in complaint for complaint in report.complaints), report.text()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_five_virtual_minutes_of_random_faults(seed: int):
    """The same for longer, with other faults."""
    report = simulated(5, seed=seed, rate=4)
    assert not report.complaints, report.text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_five_virtual_minutes_of_workers_that_join_and_leave():
    """No request fails while workers join and leave gracefully."""
    report = simulated(5, seed=7, rate=4, topology=CHURNING)
    assert not report.complaints, report.text()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_two_minutes_of_random_faults_on_real_processes(tmp_path: Path):
    """The same with real processes and signals."""
    async with real_cluster(TOPOLOGY, tmp_path) as cluster:
        report = await Soak(cluster, seed=1, rate=2).run(120)
    assert not report.complaints, report.text()
    assert "footprints not judged" not in report.text()
