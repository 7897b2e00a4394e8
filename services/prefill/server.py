"""What is wired to what in a prefill process."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from baton.v1 import prefill_pb2_grpc as rpc

from services.common.block_journal import BlockJournal
from services.common.changes import Changes
from services.common.rpc.server import Binding
from services.common.types import Load, Tier, WorkerInfo
from services.kvtransfer import transfer_service
from services.kvtransfer.source import KvSource
from services.kvtransfer.transport.available import AVAILABLE
from services.kvtransfer.transport.base import Transports
from services.prefill.admission import PrefillLimits
from services.prefill.config import PrefillSettings
from services.prefill.metrics import PrefillMetrics
from services.prefill.service import PrefillServicer
from services.prefill.worker import PrefillWorker
from services.worker.deep_check import Probe
from services.worker.kv import EngineKv
from services.worker.process import Parts, WorkerProcess
from services.worker.settings import carried_over, transfer_config
from services.worker.tier import Roles
from services.worker.try_out import tiny_request

FULL_NAME = "baton.v1.PrefillService"


class PrefillTier:
    """The prefill worker with its services: prefill itself, and the transfer of its KV over one of `transports`."""

    def __init__(self, settings: PrefillSettings, parts: Parts, transports: Transports = AVAILABLE) -> None:
        def open_source(on_released: Callable[[str], None]) -> KvSource:
            config = transfer_config(settings, parts.engine.kv.device.type)
            return KvSource(EngineKv(parts.engine), parts.info, config, on_released, transports)

        self._step_times = parts.engine.step_times
        metrics = PrefillMetrics(parts.registry)
        limits = _limits(settings)
        self._worker = PrefillWorker(parts.engine, parts.info, limits, parts.fatal, open_source, metrics.queue)
        self._prefill = PrefillServicer(self._worker, metrics, settings.default_deadline_s)

    @property
    def changes(self) -> Changes:
        """Notified when the load changed."""
        return self._worker.changes

    @property
    def blocks(self) -> BlockJournal:
        """What the prefix cache holds."""
        return self._worker.blocks

    def bindings(self) -> Sequence[Binding]:
        """PrefillService and KvTransferService."""
        prefill = Binding(FULL_NAME, self._prefill, rpc.add_PrefillServiceServicer_to_server)
        return [prefill, transfer_service.binding(self._worker.source)]

    def info(self) -> WorkerInfo:
        """What the worker is."""
        return self._worker.info()

    def load(self) -> Load:
        """How busy it is, and how fast."""
        return dataclasses.replace(self._worker.load(), step_times=self._step_times.points)

    async def start(self) -> None:
        """Starts the engine thread and the source."""
        await self._worker.start()

    async def try_out(self, deadline: float) -> None:
        """Runs a tiny prompt to its first token."""
        await self._worker.prefill(tiny_request(deadline))

    def channels(self) -> Mapping[str, Probe]:
        """None: a channel is tried out by its sink."""
        return {}

    async def settle(self, timeout_s: float) -> None:
        """Nothing to wait for: its channels are opened by its sinks."""

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Finishes prompts, or sends them on, and waits until their KV is fetched or its lease ends."""
        return await self._worker.drain(deadline, move_after_s)

    async def close(self) -> None:
        """Ends the source and the engine thread."""
        await self._worker.close()


def build(settings: PrefillSettings, others: Roles | None = None) -> WorkerProcess:
    """A prefill process, not started; `others` are the tiers that it may switch to."""
    return WorkerProcess(settings, Tier.PREFILL, lambda parts: PrefillTier(settings, parts), others)


# How a process of another tier becomes a prefill worker.
ROLES: Roles = {Tier.PREFILL: lambda settings, parts: PrefillTier(carried_over(settings, PrefillSettings), parts)}


def _limits(settings: PrefillSettings) -> PrefillLimits:
    return PrefillLimits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_queued_requests=settings.max_queued_requests,
        max_queued_tokens=settings.max_queued_tokens,
        prompts_ahead=settings.prompts_ahead,
        queue_ttl_s=settings.queue_ttl_s,
        priority_aging_s=settings.priority_aging_s,
        prefix_caching=settings.enable_prefix_caching,
    )
