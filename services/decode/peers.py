"""Keeps channels open to the prefill workers that are known, so that no request waits for a set-up."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

from services.common.following import follow
from services.common.log import get_logger
from services.common.types import Membership, Tier, WorkerInfo
from services.kvtransfer.background import Background

# Time that whoever knows the peers has to name them; a directory that is away must not keep a worker from serving.
_HEAR_TIMEOUT_S = 2.0

_log = get_logger(__name__)


class Channels(Protocol):
    """What the sink offers for it."""

    async def connect(self, worker: WorkerInfo) -> None:
        """Opens a channel, or keeps the open one; a new incarnation replaces the old one."""
        ...

    async def disconnect(self, worker_id: str) -> None:
        """Drops the channel at once, and waits, bounded, for what is left of it."""
        ...


class Peers:
    """Follows the membership for one decode worker; owns a task for that, and one for each channel that comes or goes.

    Args:
        watch: Yields the membership, now and after each change: a directory's, or addresses given by hand. When it ends
            or raises it is called again.
        worker_id: Of this worker, whose refused pairs are left out.
        channels: Where channels are opened.
    """

    def __init__(self, watch: Callable[[], AsyncGenerator[Membership]], worker_id: str, channels: Channels) -> None:
        self._watch = watch
        self._worker_id = worker_id
        self._channels = channels
        self._known: Mapping[str, WorkerInfo] = {}
        self._task: asyncio.Task[None] | None = None
        self._connecting = Background()
        self._leaving = Background()
        self._heard = asyncio.Event()

    def start(self) -> None:
        """Begins to follow."""
        self._task = asyncio.create_task(follow(self._watch, self._apply), name="decode-peers")

    async def settle(self, timeout_s: float) -> None:
        """Waits until a channel to every peer known at the start is proven or has failed, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                async with asyncio.timeout(_HEAR_TIMEOUT_S):
                    await self._heard.wait()
                await self._connecting.finished()
        except TimeoutError:
            _log.warning("peers_not_settled", peers=len(self._known))

    async def close(self) -> None:
        """Stops following, and waits for channels that were dropped; open ones are the sink's to close."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._connecting.close()
        await self._leaving.finished()

    def stats(self) -> dict[str, int]:
        """Prefill workers that are followed, those to which a channel is opened for the first time, or dropped."""
        return {
            "peers": len(self._known),
            "peers_connecting": len(self._connecting),
            "peers_leaving": len(self._leaving),
        }

    def _apply(self, membership: Membership) -> None:
        wanted = wanted_peers(membership, self._worker_id)
        for worker_id in self._known.keys() - wanted.keys():
            self._leaving.start(self._disconnect(worker_id))
        fresh = [worker for worker_id, worker in wanted.items() if self._known.get(worker_id) != worker]
        self._known = wanted
        for worker in fresh:
            self._connecting.start(self._connect(worker))
        self._heard.set()

    async def _connect(self, worker: WorkerInfo) -> None:
        """Opens a channel; a peer that does not answer holds up neither the others nor what becomes known later."""
        if self._known.get(worker.worker_id) != worker:
            return
        try:
            await self._channels.connect(worker)
        except Exception as error:  # noqa: BLE001 - one peer that cannot be reached must not stop the others
            _log.warning("peer_connect_failed", peer=worker.worker_id, error=str(error))

    async def _disconnect(self, worker_id: str) -> None:
        """Drops a channel; it is dropped before one to the same worker is opened, for tasks start in order."""
        try:
            await self._channels.disconnect(worker_id)
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("peer_disconnect_failed", peer=worker_id, error=str(error))


def wanted_peers(membership: Membership, worker_id: str) -> dict[str, WorkerInfo]:
    """Prefill workers that a decode worker may take KV from: those whose layouts fit."""
    refused = {pair.prefill_worker_id for pair in membership.refused_pairs if pair.decode_worker_id == worker_id}
    return {
        worker.worker_id: worker
        for worker in membership.workers
        if worker.tier is Tier.PREFILL and worker.worker_id not in refused
    }
