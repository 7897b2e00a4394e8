"""One row in network namespaces (F12): no packet passes between a prefill and a decode worker, all else goes on.

    unshare --net --mount --map-root-user -- python -m tests.fault.parted

Frontends and directory reach both workers, so only the pair itself can find out.
"""

import asyncio
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from services.cli.cluster_plan import ProcessPlan
from services.common.ports import join_address
from tests.fault.checks import complaints
from tests.fault.load_faults import Steady
from tests.fault.network_faults import settled
from tests.fault.phases import LOADED_PREFILL
from tests.fault.play import play
from tests.fault.real_cluster import real_cluster
from tests.fault.scenario import Expectation, Load, Scenario, Scene
from tests.harness.namespaces import Namespaces
from tests.harness.tiers import until

PARTED_S = 10.0
USED_AGAIN_S = 60.0
EVERY_S = 0.2
PAIR = ("prefill-1", "decode-1")


class Spaces:
    """A namespace for each process of a plan."""

    def __init__(self) -> None:
        self._namespaces = Namespaces()
        self._numbers: dict[str, int] = {}
        self._directory = ""

    def lead(self, plans: Sequence[ProcessPlan]) -> tuple[ProcessPlan, ...]:
        """The plans of all processes, each in its namespace; the directory comes first."""
        return tuple(map(self._led, plans))

    async def part(self, scene: Scene) -> None:
        """Parts the pair under load for seconds; it is used again afterwards."""
        numbers = [self._numbers[name] for name in PAIR]
        async with Steady(scene, EVERY_S) as steady:
            scene.did(*PAIR)
            self._namespaces.part(*numbers)
            await asyncio.sleep(PARTED_S)
            self._namespaces.join(*numbers)
            joined = time.monotonic()

            def meets() -> bool:
                return any(set(PAIR) <= {*record.workers} for record in steady.records if record.started > joined)

            await until(meets, timeout_s=USED_AGAIN_S)
        await settled(scene.cluster)

    def _led(self, plan: ProcessPlan) -> ProcessPlan:
        number = self._numbers[plan.name] = self._namespaces.add()
        host = self._namespaces.host(number)
        address, metrics = (
            join_address(host, int(old.rpartition(":")[2])) for old in (plan.address, plan.metrics_address)
        )
        self._directory = self._directory or address
        flags = (f"--host={host}", *([f"--directory={self._directory}"] if plan.role != "kvtransfer" else []))
        argv = self._namespaces.entered(number, (*plan.argv, *flags))
        return dataclasses.replace(plan, argv=argv, address=address, metrics_address=metrics)


async def run() -> list[str]:
    """Everything that was wrong."""
    spaces = Spaces()
    scenario = Scenario(
        row="F12",
        name=f"no packet passes between {' and '.join(PAIR)}",
        phase=LOADED_PREFILL,
        fault=spaces.part,
        load=Load(subjects=4, companions=6, max_tokens=48),
        # As long as a receive may take, and the try to build a new channel.
        expect=Expectation(moves=(0, 3), moved_within_s=20.0),
        is_real_only=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        async with real_cluster(scenario.topology, Path(folder), spaces.lead) as cluster:
            return complaints(await play(scenario, cluster), scenario.expect)


if __name__ == "__main__":
    found = asyncio.run(run())
    sys.stdout.write("\n".join(found) + "\n")
    sys.exit(1 if found else 0)
