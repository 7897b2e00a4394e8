"""The links of a cluster of real processes, led through proxies of the test, so that each can be hurt by itself.

    prefill-0 control   gRPC of frontends and decode workers to a worker: the address that it advertises
    prefill-0 data      gloo between a prefill worker and all decode workers: addresses of the rendezvous
    kvtransfer control  gRPC of frontends and workers to the directory: the address that they are given

A process and its proxy have the same port on two hosts of the loopback, 127.0.0.1 and one that is the link's own.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from services.cli.cluster_plan import ProcessPlan
from tests.harness.link import Hurt, Link
from tests.harness.proxy_desk import DESK_VARIABLE, LINK_VARIABLE, ProxyDesk

DIRECTORY = "kvtransfer"
CONTROL, DATA = "control", "data"


class ClusterLinks:
    """Proxies of one cluster; they outlive restarts of its processes."""

    def __init__(self, folder: Path) -> None:
        self._links: dict[str, Link] = {}
        self._fronts: dict[str, tuple[int, str]] = {}  # by link: the port that it is in front of, its host
        self._path = folder / "desk"
        self._desk = ProxyDesk(self._path, self._links)
        self._directory = ""

    def lead(self, plans: Sequence[ProcessPlan]) -> tuple[ProcessPlan, ...]:
        """The plans of all processes, with every link through a proxy; the directory comes first."""
        return tuple(self._led(number, plan) for number, plan in enumerate(plans, 1))

    def names(self) -> list[str]:
        """Links that can be hurt."""
        return sorted(self._links)

    async def open(self) -> None:
        """Listens for every process."""
        for name, (port, host) in self._fronts.items():
            await self._links[name].proxy(port, at=(host, port))
        await self._desk.open()

    async def close(self) -> None:
        """Ends all proxies."""
        await self._desk.close()
        for link in self._links.values():
            await link.close()

    def hurt(self, name: str, how: Hurt) -> None:
        """From now on, until `heal`, a link is hurt."""
        self._links[name].hurt(how)

    async def heal(self, name: str) -> None:
        """A link is as good as before."""
        await self._links[name].heal()

    def _led(self, number: int, plan: ProcessPlan) -> ProcessPlan:
        host, port = f"127.0.1.{number}", int(plan.address.rpartition(":")[2])
        if plan.role == DIRECTORY:
            self._directory = f"{host}:{port}"
        if plan.role != "frontend":
            self._links[f"{plan.name} {CONTROL}"] = Link()
            self._fronts[f"{plan.name} {CONTROL}"] = (port, host)
        if plan.role == "prefill":
            self._links[f"{plan.name} {DATA}"] = Link()
        return dataclasses.replace(
            plan,
            argv=(*plan.argv, *self._flags(plan.role, number, host)),
            env={**plan.env, DESK_VARIABLE: str(self._path), LINK_VARIABLE: f"{plan.name} {DATA}"},
        )

    def _flags(self, role: str, number: int, host: str) -> tuple[str, ...]:
        if role == DIRECTORY:
            return ()
        directory = f"--directory={self._directory}"
        if role == "frontend":
            return (directory,)
        return (directory, f"--advertise-host={host}", f"--kv-host=127.0.2.{number}")
