"""Rows of the fault matrix on a simulated cluster: every phase, in virtual time."""

import dataclasses

import pytest

from tests.fault import rows
from tests.fault.checks import OWNED, OWNED_METRICS
from tests.fault.evidence import Evidence
from tests.fault.phases import MID_DECODE
from tests.fault.play import judge, play
from tests.fault.scenario import Scenario, Topology
from tests.fault.simulated_cluster import simulated_cluster
from tests.harness.virtual_time import VirtualClock, run_virtually

# Virtual seconds of a busy cluster take real minutes where others use the cores.
pytestmark = pytest.mark.timeout(600)


def simulate(scenario: Scenario, seed: int) -> Evidence:
    """Plays a scenario on virtual time."""

    async def main(clock: VirtualClock) -> Evidence:
        async with simulated_cluster(scenario.topology, clock, seed) as cluster:
            return await play(scenario, cluster, seed * 1000)

    return run_virtually(main)


CASES = [
    pytest.param(scenario, id=scenario.title, marks=[pytest.mark.slow] * scenario.is_slow)
    for scenario in rows.SIMULATED
]


@pytest.mark.parametrize("scenario", CASES)
def test_row_in_simulation(scenario: Scenario):
    """C1–C7 hold and requests end as the row says."""
    judge(scenario, simulate(scenario, 0))


def test_broken_recovery_is_found():
    """Negative control: where requests may not move, the rows about killed workers fail."""
    (scenario,) = [each for each in rows.F2 if each.phase is MID_DECODE]
    topology = Topology(flags={"frontend": {"max-moves": "0"}})
    broken = dataclasses.replace(scenario, topology=topology)
    with pytest.raises(AssertionError, match=r"subject.* ended with UNAVAILABLE"):
        judge(broken, simulate(broken, 0))


def test_all_that_must_come_to_rest_is_told():
    """Every count that C3 looks at is told by some process: a name that nobody has would always be at rest."""

    async def main(clock: VirtualClock) -> set[str]:
        async with simulated_cluster(Topology(prefill=1, decode=1), clock) as cluster:
            states = [await cluster.state(name) for name in cluster.names()]
            return {name for state in states for name in (*state.counts, *state.metrics)}

    assert {*OWNED, *OWNED_METRICS} <= run_virtually(main)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scenario", CASES)
def test_row_in_simulation_with_other_timing(scenario: Scenario, seed: int):
    """The same where steps take other times."""
    judge(scenario, simulate(scenario, seed))
