"""What is wired to what in a decode process."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from baton.v1 import decode_pb2_grpc as rpc

from services.common.block_journal import BlockJournal
from services.common.changes import Changes
from services.common.rpc.server import Binding
from services.common.settings import WorkerSettings
from services.common.types import Load, Membership, Tier, WorkerInfo
from services.decode.admission import DecodeLimits
from services.decode.config import DecodeSettings
from services.decode.metrics import DecodeMetrics
from services.decode.peers import Peers
from services.decode.service import DecodeServicer
from services.decode.worker import DecodeWorker
from services.kvtransfer.directory.client import watch_membership
from services.kvtransfer.directory.view import Hears
from services.kvtransfer.sink import KvSink
from services.kvtransfer.static_source import watch_static
from services.worker.deep_check import Probe
from services.worker.kv import EngineKv
from services.worker.process import Parts, WorkerProcess
from services.worker.settings import carried_over, transfer_config
from services.worker.tier import Roles
from services.worker.try_out import tiny_request

FULL_NAME = "baton.v1.DecodeService"


class DecodeTier:
    """The decode worker with its service, its sink and its channels to prefill workers."""

    def __init__(self, settings: DecodeSettings, parts: Parts) -> None:
        config = transfer_config(settings, parts.engine.kv.device.type)
        sink = self._sink = KvSink(EngineKv(parts.engine), parts.info, config)
        self._step_times = parts.engine.step_times
        metrics = DecodeMetrics(parts.registry)
        self._worker = DecodeWorker(parts.engine, parts.info, _limits(settings), parts.fatal, sink, metrics.queue)
        self._decode = DecodeServicer(self._worker, metrics, settings.default_deadline_s)
        sink.on_channel = self._worker.changes.notify
        watch = _membership(settings, lambda incarnation: incarnation in sink.proven)
        self._peers = Peers(watch, parts.info.worker_id, sink) if watch is not None else None

    @property
    def changes(self) -> Changes:
        """Notified when the load changed."""
        return self._worker.changes

    @property
    def blocks(self) -> BlockJournal:
        """What the prefix cache holds."""
        return self._worker.blocks

    def bindings(self) -> Sequence[Binding]:
        """DecodeService."""
        return [Binding(FULL_NAME, self._decode, rpc.add_DecodeServiceServicer_to_server)]

    def info(self) -> WorkerInfo:
        """What the worker is."""
        return self._worker.info()

    def load(self) -> Load:
        """How busy it is, and how fast."""
        return dataclasses.replace(
            self._worker.load(),
            proven=None if self._peers is None else self._sink.proven,
            step_times=self._step_times.points,
            handoff_times=self._worker.handoff_times.points,
        )

    async def start(self) -> None:
        """Starts the engine thread and follows the membership."""
        await self._worker.start()
        if self._peers is not None:
            self._peers.start()

    async def try_out(self, deadline: float) -> None:
        """Runs a tiny request to its end."""
        async for _ in self._worker.decode(tiny_request(deadline)):
            pass

    def channels(self) -> Mapping[str, Probe]:
        """A tiny transfer for each prefill worker that it has to do with."""
        return {peer.worker_id: peer.probe for peer in self._sink.peers.values()}

    async def settle(self, timeout_s: float) -> None:
        """Waits until the channels to the prefill workers of the start are proven or have failed."""
        if self._peers is not None:
            await self._peers.settle(timeout_s)

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Finishes the running requests, or sends them on."""
        return await self._worker.drain(deadline, move_after_s)

    async def close(self) -> None:
        """Ends the peers, the sink and the engine thread."""
        if self._peers is not None:
            await self._peers.close()
        await self._worker.close()


def build(settings: DecodeSettings, others: Roles | None = None) -> WorkerProcess:
    """A decode process, not started; `others` are the tiers besides decode and colocated that it may switch to."""
    tiers = {**ROLES, **(others or {})}
    return WorkerProcess(settings, settings.tier, lambda parts: DecodeTier(settings, parts), tiers)


def _take(settings: WorkerSettings, parts: Parts) -> DecodeTier:
    """The worker of a process that was of another tier."""
    return DecodeTier(carried_over(settings, DecodeSettings, role=parts.info.tier.value), parts)


# How a process of another tier becomes a decode or a colocated worker.
ROLES: Roles = {Tier.DECODE: _take, Tier.COLOCATED: _take}


def _membership(settings: DecodeSettings, hears: Hears) -> Callable[[], AsyncGenerator[Membership]] | None:
    """Who names the prefill workers; None where nobody does, or where none is needed."""
    if settings.tier is not Tier.DECODE:
        return None
    if settings.directory:
        return lambda: watch_membership(settings.directory, hears)
    return (lambda: watch_static(settings.static_peers)) if settings.static_peers else None


def _limits(settings: DecodeSettings) -> DecodeLimits:
    return DecodeLimits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_queued_requests=settings.max_queued_requests,
        seats_ahead=settings.seats_ahead,
        queue_ttl_s=settings.queue_ttl_s,
        priority_aging_s=settings.priority_aging_s,
        max_unread_tokens=settings.max_unread_tokens,
        prefix_caching=settings.enable_prefix_caching,
    )
