"""All processes of a local cluster: started together, waited for, stopped in order."""

import asyncio
import pathlib
from collections.abc import Callable

from services.cli.cluster_plan import STOP_ORDER, ClusterPlan
from services.cli.launched import Change, Launched, State
from services.cli.restarts import RestartPolicy

# One of each must live; without prefill workers decode workers run whole requests.
_NEEDED_ROLES = (("frontend",), ("decode", "colocated"))


class ClusterFailed(Exception):
    """The cluster did not become ready, or can no longer serve; the message says which process and why."""


class LocalCluster:
    """The processes of a plan.

    Their output goes to one file each in `log_folder`; `report` gets every change of state. The owner must await
    `stop`; should this process die first, the kernel kills the others (Linux).
    """

    def __init__(
        self,
        plan: ClusterPlan,
        log_folder: pathlib.Path,
        report: Callable[[Change], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self.plan = plan
        self._report = report
        self._changed = asyncio.Event()
        policy = policy or RestartPolicy()
        self.processes = [
            Launched(process, log_folder / f"{process.name}.log", policy, self._on_change) for process in plan.processes
        ]

    async def start(self, timeout_s: float) -> None:
        """Starts every process and returns once all are ready.

        Raises:
            ClusterFailed: a process was given up, or one is not ready in time; the others still run.
        """
        for process in self.processes:
            process.start()
        try:
            async with asyncio.timeout(timeout_s):
                while awaited := self.awaited():
                    self._raise_if_given_up(awaited)
                    await self._next_change()
        except TimeoutError:
            names = ", ".join(process.plan.name for process in self.awaited())
            raise ClusterFailed(f"not ready after {timeout_s:.0f} s: {names}; raise --start-timeout?") from None

    def awaited(self) -> list[Launched]:
        """Processes that are not ready."""
        return [process for process in self.processes if process.state is not State.READY]

    async def wait(self) -> None:
        """Returns never; processes that die are started again meanwhile.

        Raises:
            ClusterFailed: every frontend, or every worker that can decode, is given up.
        """
        while True:
            for roles in _NEEDED_ROLES:
                chosen = [process for process in self.processes if process.plan.role in roles]
                if chosen and all(process.state is State.GIVEN_UP for process in chosen):
                    self._raise_if_given_up(chosen)
            await self._next_change()

    async def stop(self, grace_s: float) -> None:
        """Stops tier after tier, so that none loses what it still needs; each gets `grace_s` seconds."""
        for role in STOP_ORDER:
            async with asyncio.TaskGroup() as group:
                for process in self.processes:
                    if process.plan.role == role:
                        group.create_task(process.stop(grace_s))

    def kill(self) -> None:
        """Kills every process at once; `stop` must still be awaited."""
        for process in self.processes:
            process.kill()

    def stats(self) -> dict[str, int]:
        """Counts over all processes."""
        each = [process.stats() for process in self.processes]
        return {name: sum(stats[name] for stats in each) for name in ("deaths", "running")}

    def _on_change(self, change: Change) -> None:
        self._changed.set()
        self._report(change)

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _raise_if_given_up(self, processes: list[Launched]) -> None:
        for process in processes:
            if process.state is State.GIVEN_UP:
                tail = "\n".join(f"  {line}" for line in process.log_tail())
                raise ClusterFailed(f"{process.plan.name} keeps dying; the end of {process.log_path}:\n{tail}")
