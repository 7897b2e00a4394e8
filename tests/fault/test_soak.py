"""Minutes of random faults on a simulated cluster, and shortly on real processes."""

from pathlib import Path

import pytest

from tests.fault.real_cluster import real_cluster
from tests.fault.simulated_cluster import simulated_cluster
from tests.fault.soak import CHURNING, TOPOLOGY, Soak
from tests.fault.soak_report import Report
from tests.harness.virtual_time import VirtualClock, run_virtually


def simulated(minutes: float, seed: int, rate: float, *, is_churn: bool = False, only: str = "") -> Report:
    """A soak on virtual time."""

    async def main(clock: VirtualClock) -> Report:
        async with simulated_cluster(CHURNING if is_churn else TOPOLOGY, clock, seed) as cluster:
            return await Soak(cluster, seed, rate, is_churn=is_churn, only=only).run(minutes * 60)

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
    report = simulated(5, seed=7, rate=4, is_churn=True)
    assert not report.complaints, report.text()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_two_minutes_of_random_faults_on_real_processes(tmp_path: Path):
    """The same with real processes and signals."""
    async with real_cluster(TOPOLOGY, tmp_path) as cluster:
        report = await Soak(cluster, seed=1, rate=2).run(120)
    assert not report.complaints, report.text()
