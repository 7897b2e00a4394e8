"""A prefill or decode process from its settings to its end; the tiers differ in the `TierWorker` that they build.

    start:  pin cores → load and warm up → build the worker → listen → try it out → register → prove channels → ready
    switch: drain → end the worker, leave the directory → build another tier's over the same engine → register → ready
    drain:  not ready → take no new requests, finish the running ones or send them on
    stop:   leave the directory → end the worker and its engine thread → stop listening

Satisfies `common.lifecycle.Process`.
"""

import asyncio
import dataclasses
import secrets
import time
from functools import partial

from prometheus_client import CollectorRegistry

from services.common.checkpoint import served_name
from services.common.config import ConfigError
from services.common.errors import Draining, Internal, RoleRefused
from services.common.lifecycle import Fatal
from services.common.log import get_logger
from services.common.metrics import MetricsServer, start_metrics_server
from services.common.ports import free_port, join_address
from services.common.rpc.server import RpcServer
from services.common.settings import WorkerSettings
from services.common.types import Tier, WorkerInfo
from services.common.version import version
from services.engine.engine import Engine
from services.worker.loading import load_apart
from services.worker.metrics import RoleSwitches
from services.worker.placement import place_ranks
from services.worker.role import Role, RoleMetrics
from services.worker.settings import transports
from services.worker.tier import Build, Parts, Roles, TierWorker

STOP_GRACE_S = 1.0
REGISTRATION_WAIT_S = 2.0
# What is kept of a switch's time for building the new role, and maybe the old one again; half of a shorter time.
SWITCH_MARGIN_S = 10.0

_log = get_logger(__name__)


class WorkerProcess:
    """Runs one worker; create it on the event loop. `others` are the tiers besides its own that it may switch to."""

    def __init__(self, settings: WorkerSettings, tier: Tier, build: Build, others: Roles | None = None) -> None:
        self.fatal = Fatal()
        self._settings = settings
        self._tier = tier
        self._builds: dict[Tier, Build] = {other: partial(make, settings) for other, make in (others or {}).items()}
        self._builds[tier] = build
        self._registry = CollectorRegistry()
        self._role_metrics = RoleMetrics()
        self._registry.register(self._role_metrics)
        self._switches = RoleSwitches(self._registry)
        self._metrics: MetricsServer | None = None
        self._engine: Engine | None = None
        self._server: RpcServer | None = None
        self._role: Role | None = None
        self._switch: asyncio.Task[WorkerInfo] | None = None
        self._is_leaving = False

    async def start(self) -> None:
        """Loads the model and serves.

        Raises:
            ConfigError: a setting does not fit this machine or the checkpoint.
        """
        settings = self._settings
        rank_cores = place_ranks(settings.cpus, settings.tensor_parallel_size)
        if settings.max_num_batched_tokens < settings.max_num_seqs:
            raise ConfigError("max_num_batched_tokens must be at least max_num_seqs: each slot feeds a token a step")
        if settings.metrics_port:
            self._metrics = start_metrics_server(settings.host, settings.metrics_port, self._registry)
        engine = self._engine = await load_apart(settings, rank_cores)
        engine.watch(self.fatal.fail)
        info = self._describe(engine)
        port = int(info.address.rpartition(":")[2])
        self._server = RpcServer(
            settings.host,
            port,
            [],
            limits=settings.server_limits(),
            security=settings.server_security(),
            registry=self._registry,
        )
        role = await self._begin(engine, self._server, info)
        await self._server.start()
        await role.prove()
        await role.join(REGISTRATION_WAIT_S)
        await role.serve()
        _log.info("worker_ready", worker_id=info.worker_id, address=info.address, incarnation=info.incarnation)

    async def switch_role(self, tier: Tier, deadline: float, move_after_s: float | None = None) -> WorkerInfo:
        """Serves another tier with the model that is loaded; what runs finishes first, or goes on elsewhere.

        Args:
            tier: The tier to serve; nothing happens where it is served already.
            deadline: Monotonic; bounds the drain of the old role, with time left for the new one.
            move_after_s: As in `drain`.

        Raises:
            RoleRefused: the tier cannot be taken; the worker serves what it did before.
            Draining: the process is leaving.
        Cancel: safe; the switch goes on.
        """
        if self._switch is not None:
            raise RoleRefused("a switch to another tier is under way; wait for it")
        role = self._role
        if self._is_leaving or role is None:
            raise _leaving()
        if tier is role.info.tier:
            return role.info
        if tier not in self._builds:
            raise RoleRefused(f"this process cannot serve the {tier.value} tier")
        if not role.is_known:
            raise RoleRefused("the directory is away, nobody would learn of the new role; try again when it is back")
        self._switch = asyncio.create_task(self._replace(role, tier, deadline, move_after_s), name="switch-role")
        self._switch.add_done_callback(self._switched)
        return await asyncio.shield(self._switch)

    async def drain(self, deadline: float) -> None:
        """Finishes what runs or sends it on; peers see it by health and load and send nothing new."""
        self._is_leaving = True
        if self._switch is not None:
            await asyncio.wait({self._switch}, timeout=max(0.0, deadline - time.monotonic()))
        if self._role is not None:
            await self._role.drain(deadline, None)

    async def stop(self) -> None:
        """Frees everything, whatever was started."""
        if self._switch is not None:
            self._switch.cancel()
            await asyncio.wait({self._switch})
        if self._role is not None:
            await self._role.close()
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)

    async def _begin(self, engine: Engine, server: RpcServer, info: WorkerInfo) -> Role:
        """Builds and starts a role; the process has it from now on."""
        parts = Parts(engine, info, self.fatal, CollectorRegistry())
        role = self._role = Role(parts, self._builds[info.tier], self._settings, server, self.switch_role)
        self._role_metrics.follow(role)
        await role.start()
        return role

    async def _replace(self, old: Role, tier: Tier, deadline: float, move_after_s: float | None) -> WorkerInfo:
        _log.info("role_switch_begun", tier=tier.value, was=old.info.tier.value)
        margin_s = min(SWITCH_MARGIN_S, (deadline - time.monotonic()) / 2)
        left = await old.drain(deadline - margin_s, move_after_s)
        await self._end(old)
        try:
            info = await self._take(old.info, tier)
        except Exception as error:
            if self._is_leaving:
                raise
            _log.error("role_switch_failed", tier=tier.value, exc_info=error)
            await self._return_to(old)
            self._switches.observe(tier, "rolled_back")
            message = f"could not serve the {tier.value} tier ({type(error).__name__}: {error})"
            raise RoleRefused(f"{message}; the worker serves the {old.info.tier.value} tier again") from error
        self._switches.observe(tier, "done")
        _log.info("role_switched", tier=tier.value, incarnation=info.incarnation, cut_off=left)
        return info

    async def _take(self, before: WorkerInfo, tier: Tier) -> WorkerInfo:
        """Serves a tier as a new incarnation.

        Raises:
            Exception: it could not; nothing of the attempt is left.
        """
        if self._is_leaving or self._engine is None or self._server is None:
            raise _leaving()
        info = dataclasses.replace(before, tier=tier, incarnation=secrets.token_hex(8))
        try:
            role = await self._begin(self._engine, self._server, info)
            await role.prove()
            if not await role.join(REGISTRATION_WAIT_S):
                raise RoleRefused(f"the directory did not register it within {REGISTRATION_WAIT_S:g} s")
        except BaseException:
            if self._role is not None:
                await self._end(self._role)
            raise
        await role.serve()
        return info

    async def _return_to(self, old: Role) -> None:
        """Takes the old tier again; a process that cannot even do that ends, and its supervisor restarts it."""
        try:
            await self._take(old.info, old.info.tier)
        except Exception as error:
            self.fatal.fail(error)
            raise

    async def _end(self, role: Role) -> None:
        """Ends a role; a process in which a part of one may live on cannot have another."""
        await role.close()
        if role.is_using_engine:
            error = Internal(f"the {role.info.tier.value} worker did not end in time; its engine cannot be used again")
            self.fatal.fail(error)
            raise error
        self._role = None

    def _switched(self, switch: "asyncio.Task[WorkerInfo]") -> None:
        self._switch = None
        if not switch.cancelled():
            switch.exception()  # marks it as seen: whoever asked may have left

    def _describe(self, engine: Engine) -> WorkerInfo:
        settings = self._settings
        port = settings.port or free_port(settings.host)
        offered = transports(settings, engine.kv.device.type)
        return WorkerInfo(
            worker_id=settings.worker_name(self._tier.value, port),
            incarnation=secrets.token_hex(8),
            tier=self._tier,
            address=join_address(settings.advertised_host, port),
            model=served_name(settings.model, settings.served_model_name),
            layout=dataclasses.replace(engine.layout, transports=offered),
            max_model_len=engine.limits.max_model_len,
            version=version(),
            total_blocks=engine.limits.num_blocks,
            max_num_seqs=engine.limits.max_num_seqs,
            weight=settings.weight,
        )


def _leaving() -> Draining:
    return Draining("the process of this worker is leaving; use another one")


__all__ = ["Parts", "TierWorker", "WorkerProcess"]
