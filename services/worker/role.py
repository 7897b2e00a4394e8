"""One role of a worker process: a tier's worker, its services, its place in the directory.

    created ──start──▶ mounted ──prove──▶ its engine works ──join──▶ registered ──serve──▶ ready ──drain──▶ nothing runs
                                                                                            ──close──▶ gone

A process has one role at a time. The next one is built over the same engine under the same worker id, as another
incarnation: peers take it for a restarted process, so that nothing meant for the old role can reach the new one.
"""

import time
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.common.rpc.server import LIVENESS, RpcServer
from services.common.settings import WorkerSettings
from services.common.worker_service import SwitchRole, WorkerServicer
from services.kvtransfer.directory.registration import Registration
from services.worker.deep_check import deep_check
from services.worker.liveness import Liveness
from services.worker.load_collector import LoadCollector
from services.worker.standing import Standing
from services.worker.tier import Build, Parts

# The first forward pass may have to compile something.
TRY_OUT_S = 120.0
SETTLE_S = 12.0


class Role:
    """Owns a `TierWorker` from its first thread to its last. Create it on the event loop.

    Args:
        parts: what the worker is built from; the registry is this role's own.
        build: builds it.
        settings: of the process.
        server: on which it is mounted; the process starts and stops it.
        switch_role: what operators call through WorkerService.
    """

    def __init__(
        self, parts: Parts, build: Build, settings: WorkerSettings, server: RpcServer, switch_role: SwitchRole
    ) -> None:
        self.info = parts.info
        self.registry = parts.registry
        self._settings = settings
        self._server = server
        self._worker = build(parts)
        self._is_ready = False
        self._is_leaving = False
        self._standing = Standing(self._worker, self._leave, settings.drain_move_after_s)
        self._liveness = Liveness(self._worker, settings.engine_stall_s, self._set_live)
        check = partial(deep_check, self._worker, self._liveness.check)
        self._servicer = WorkerServicer(self._standing, self._worker.changes, switch_role, check)
        self._registration: Registration | None = None
        LoadCollector(f"baton_{self.info.tier.value}", self._worker, parts.registry)

    async def start(self) -> None:
        """Starts the worker and serves its RPCs."""
        await self._worker.start()
        self._liveness.start()
        self._server.mount([*self._worker.bindings(), self._servicer.binding()])

    async def prove(self) -> None:
        """Runs a tiny request on the engine.

        Raises:
            BatonError: it does not work.
        """
        await self._worker.try_out(time.monotonic() + TRY_OUT_S)

    async def serve(self) -> None:
        """Says that it is ready, once its channels to the peers of now are proven or have failed."""
        await self._worker.settle(SETTLE_S)
        self._is_ready = True
        self._show()

    async def join(self, wait_s: float) -> bool:
        """Registers with the directory, where there is one; False where that did not succeed within `wait_s`.

        It goes on trying until `close`.
        """
        if not self._settings.directory:
            return True
        self._registration = Registration(self._settings.directory, lambda: self.info)
        self._registration.start()
        return await self._registration.wait_registered(wait_s)

    @property
    def is_known(self) -> bool:
        """True while the directory, where there is one, knows this role."""
        return not self._settings.directory or (self._registration is not None and self._registration.is_registered)

    async def drain(self, deadline: float, move_after_s: float | None) -> int:
        """Takes nothing new, finishes what runs or sends it on; gives what is left at `deadline` (monotonic).

        The worker stays in the directory until then: peers drop whoever is not listed, and with it the KV that they
        are still fetching.
        """
        self._leave()
        if move_after_s is None:
            move_after_s = self._settings.drain_move_after_s
        return await self._worker.drain(deadline, move_after_s)

    async def close(self) -> None:
        """Leaves the directory, then ends everything, in whatever state; what still runs goes on elsewhere.

        Idempotent.
        """
        await self._liveness.close()
        if self._registration is not None:
            await self._registration.close()
        self._servicer.close()
        await self._worker.close()

    def _leave(self) -> None:
        self._is_leaving = True
        self._show()

    def _set_live(self, is_live: bool) -> None:
        self._standing.is_live = is_live
        self._worker.changes.notify()
        self._show()

    def _show(self) -> None:
        """Tells health watchers what holds now."""
        is_live = self._standing.is_live
        self._server.set_serving(is_live, LIVENESS)
        self._server.set_serving(self._is_ready and is_live and not self._is_leaving)

    @property
    def is_using_engine(self) -> bool:
        """True while the role's thread may step the engine, or a fetch may write into its blocks."""
        counters = self._worker.load().counters
        return bool(counters.get("engine_threads") or counters.get("sink_fetches"))


class RoleMetrics(Collector):
    """The metrics of whichever role the process has; each role counts from zero, as a restarted process would."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def follow(self, role: Role) -> None:
        """Exports this role's metrics from now on."""
        self._registry = role.registry

    def collect(self) -> Iterator[Metric]:
        """All metrics of the role."""
        yield from self._registry.collect()

    def describe(self) -> Iterator[Metric]:
        """Nothing: names differ by tier."""
        return iter(())
