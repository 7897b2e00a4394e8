"""Membership without a directory: from addresses given by hand, or from names that resolve to them.

Each worker is asked what it is, again and again, so that a restart or another role is noticed. What it says counts: the
tier in the list is only what is expected. Names are resolved again and again, too, so that workers come and go with
their addresses. Pairs that do not fit are refused as the directory would.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc

from services.common.errors import BatonError
from services.common.log import get_logger
from services.common.ports import split_address
from services.common.resolve import Resolve, resolve
from services.common.rpc.channel import open_channel
from services.common.types import Membership, RefusedPair, Tier, WorkerInfo
from services.common.worker_client import WorkerClient
from services.kvtransfer.compatibility import incompatibility

_POLL_S = 1.0
_TIMEOUT_S = 2.0
_RESOLVE_AGAIN_S = 5.0
_DNS = "dns:"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StaticWorker:
    """A worker to use: the tier that it is expected to be of, and host:port of its gRPC services.

    Where `is_name`, every address behind the host is a worker.
    """

    tier: Tier
    address: str
    is_name: bool = False


def parse_worker(tier: Tier, text: str) -> StaticWorker:
    """Reads `host:port` or `dns:host:port`.

    Raises:
        ValueError: says what of it cannot be read.
    """
    address = text.removeprefix(_DNS)
    split_address(address)
    return StaticWorker(tier, address, is_name=address != text)


async def watch_static(
    workers: Sequence[StaticWorker], resolver: Resolve = resolve
) -> AsyncGenerator[Membership, None]:
    """Yields the membership once everybody was asked, and whenever a worker appears, restarts or leaves its name.

    A worker that cannot be asked stays as it was last known, and so do the addresses of a name that does not resolve.

    Cancel: safe; the channels are closed.
    """
    asked = _Asked(workers, resolver)
    yielded: tuple[WorkerInfo, ...] | None = None
    revision = 0
    try:
        while True:
            found = await asked.members()
            if found != yielded:
                revision += 1
                yielded = found
                yield Membership(revision=revision, workers=found, refused_pairs=_refused_pairs(found))
            await asyncio.sleep(_POLL_S)
    finally:
        await asked.close()


class _Asked:
    """The addresses that are asked, a channel to each, and what each last said."""

    def __init__(self, workers: Sequence[StaticWorker], resolver: Resolve) -> None:
        self._workers = workers
        self._resolver = resolver
        self._behind: dict[StaticWorker, tuple[str, ...]] = {}
        self._resolve_at = 0.0
        self._channels: dict[StaticWorker, grpc.aio.Channel] = {}
        self._known: dict[StaticWorker, WorkerInfo] = {}

    async def members(self) -> tuple[WorkerInfo, ...]:
        """Everybody who answers or has answered, by id; a worker with several addresses is one."""
        if time.monotonic() >= self._resolve_at:
            self._resolve_at = time.monotonic() + _RESOLVE_AGAIN_S
            await asyncio.gather(*(self._resolve(worker) for worker in self._workers if worker.is_name))
            await self._connect()
        answers = await asyncio.gather(*(_ask(worker, channel) for worker, channel in self._channels.items()))
        for worker, info in zip(self._channels, answers, strict=True):
            if info is not None:
                self._note(worker, info)
        by_id = {info.worker_id: info for info in self._known.values()}
        return tuple(by_id[worker_id] for worker_id in sorted(by_id))

    def _note(self, worker: StaticWorker, info: WorkerInfo) -> None:
        """Keeps what a worker says; once for each other tier that it takes, says that the list is out of date."""
        known = self._known.get(worker)
        if info.tier is not worker.tier and (known is None or known.tier is not info.tier):
            tiers = {"tier": info.tier.value, "listed": worker.tier.value}
            _log.warning("worker_of_another_tier", worker_id=info.worker_id, address=worker.address, **tiers)
        self._known[worker] = info

    async def close(self) -> None:
        """Frees the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def _resolve(self, worker: StaticWorker) -> None:
        try:
            self._behind[worker] = await self._resolver(worker.address)
        except BatonError as error:
            _log.warning("name_not_resolved", address=worker.address, error=error.message)

    async def _connect(self) -> None:
        """One channel for each address; those that are gone from their names are dropped."""
        wanted = {
            StaticWorker(worker.tier, address)
            for worker in self._workers
            for address in (self._behind.get(worker, ()) if worker.is_name else (worker.address,))
        }
        for gone in self._channels.keys() - wanted:
            self._known.pop(gone, None)
            await self._channels.pop(gone).close()
        for fresh in sorted(wanted - self._channels.keys(), key=lambda worker: worker.address):
            self._channels[fresh] = open_channel(fresh.address)


async def _ask(worker: StaticWorker, channel: grpc.aio.Channel) -> WorkerInfo | None:
    with contextlib.suppress(BatonError):
        info, _ = await WorkerClient(channel, f"the worker at {worker.address}").describe(_TIMEOUT_S)
        return info
    _log.debug("worker_not_described", address=worker.address)
    return None


def _refused_pairs(workers: Sequence[WorkerInfo]) -> tuple[RefusedPair, ...]:
    prefills = [worker for worker in workers if worker.tier is Tier.PREFILL]
    decodes = [worker for worker in workers if worker.tier is Tier.DECODE]
    reasons = ((p, d, incompatibility(p.layout, d.layout)) for p in prefills for d in decodes)
    return tuple(
        RefusedPair(prefill_worker_id=p.worker_id, decode_worker_id=d.worker_id, reason=reason)
        for p, d, reason in reasons
        if reason is not None
    )
