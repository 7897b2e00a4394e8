"""Which sinks the source has channels to: one channel per sink process, one epoch after the other.

A new request of the same process replaces its channel with the next epoch; a new incarnation of a sink replaces the old
one at once, because the old process is gone. Loop-owned.
"""

import asyncio
import uuid
from collections import OrderedDict
from functools import partial

from services.common.errors import BatonError, ChannelBroken, Overloaded, PeerIncompatible, PeerUnreachable
from services.common.types import WorkerInfo
from services.kvtransfer.channel import Channel
from services.kvtransfer.compatibility import incompatibility
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import ChannelOffer, ChannelRequest
from services.kvtransfer.joining import Joining, Opening
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.proof import PROOF_BYTES, Introduction, new_secret
from services.kvtransfer.rendezvous import SourceKeys
from services.kvtransfer.sending import TicketReads
from services.kvtransfer.source_channel import SourceChannel
from services.kvtransfer.staging import Staging, token_bytes
from services.kvtransfer.transport.base import SOURCE_RANK, Meeting, Transports

MAX_REMEMBERED_SINKS = 1024


class SourceChannels:
    """Admits sinks and keeps their channels."""

    def __init__(self, worker: WorkerInfo, kv: KvBlocks, config: TransferConfig, transports: Transports) -> None:
        self._worker = worker
        self._kv = kv
        self._config = config
        self._transports = transports
        self._open: dict[str, SourceChannel] = {}
        self._channel_of: dict[str, SourceChannel] = {}
        self._epochs: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._ending: set[Channel] = set()
        self._counts = {"channels_opened_total": 0, "channels_aborted_total": 0, "stale_orders_total": 0}

    def __len__(self) -> int:
        """Channels that are not broken."""
        return len(self._open)

    def admit(self, request: ChannelRequest, tickets: TicketReads) -> SourceChannel:
        """Makes a channel for a sink; `SourceChannel.events` then runs it.

        Raises:
            PeerUnreachable: the sink means an earlier process than this one.
            PeerIncompatible: the layouts do not fit.
            Overloaded: there are too many channels.
        """
        self._check(request)
        self._replace(request.sink)
        offer = self._offer(request.sink)
        most = max(self._config.staging_bytes, offer.max_message_bytes)
        staging = Staging(offer.max_message_bytes, most, is_pinned=self._config.pin_staging)
        keys = SourceKeys()
        meeting = Meeting(
            rank=SOURCE_RANK,
            name=f"{offer.channel_id}/{offer.epoch}",
            keys=keys,
            host=self._config.kv_host,
            interface=self._config.kv_interface,
        )
        build = partial(self._transports[request.transport], meeting, self._config.connect_timeout_s)
        thread = Channel(offer.channel_id, build, staging)
        introduction = Introduction(
            secret=offer.secret,
            channel_id=offer.channel_id,
            epoch=offer.epoch,
            source_incarnation=self._worker.incarnation,
            sink_incarnation=request.sink.incarnation,
        )
        opening = Opening(offer, Joining(introduction, self._config.operation_timeout_s), keys)
        channel = SourceChannel(thread, opening, self._kv, tickets, self._config)
        self._open[offer.channel_id] = channel
        self._channel_of[request.sink.worker_id] = channel
        self._counts["channels_opened_total"] += 1
        return channel

    def find(self, channel_id: str, epoch: int) -> SourceChannel:
        """An open channel.

        Raises:
            ChannelBroken: it is gone, or the epoch is another one.
        """
        channel = self._open.get(channel_id)
        if channel is None or channel.offer.epoch != epoch:
            self._counts["stale_orders_total"] += 1
            raise ChannelBroken(f"channel {channel_id} of epoch {epoch} is gone; open a new one")
        return channel

    def is_sending(self, ticket_id: str) -> bool:
        """True while some channel has KV of a ticket left to send."""
        return any(channel.is_sending(ticket_id) for channel in self._open.values())

    def all(self) -> list[SourceChannel]:
        """Every channel that is not broken."""
        return list(self._open.values())

    def drop(self, channel: SourceChannel, error: BatonError) -> None:
        """Breaks a channel and forgets it; idempotent."""
        if self._open.pop(channel.offer.channel_id, None) is None:
            return
        self._counts["channels_aborted_total"] += 1
        for worker_id, current in list(self._channel_of.items()):
            if current is channel:
                del self._channel_of[worker_id]
        channel.abort(error)
        self._ending = {ending for ending in self._ending if not ending.has_ended}
        if not channel.channel.has_ended:
            self._ending.add(channel.channel)

    async def close(self, error: BatonError, timeout_s: float) -> None:
        """Breaks every channel, waits, bounded, for their threads."""
        for channel in self.all():
            self.drop(channel, error)
        await asyncio.gather(*(channel.wait_ended(timeout_s) for channel in self._ending))

    def stats(self) -> dict[str, int]:
        """Channels, their fetches and traffic, threads that are still ending, totals."""
        total: dict[str, int] = {}
        for channel in self._open.values():
            for name, count in channel.channel.stats().items():
                total[name] = total.get(name, 0) + count
        return {
            **total,
            "channels": len(self._open),
            "channels_ending": sum(not channel.has_ended for channel in self._ending),
            "fetches": sum(channel.num_fetches for channel in self._open.values()),
            **self._counts,
        }

    def _check(self, request: ChannelRequest) -> None:
        if request.source_incarnation != self._worker.incarnation:
            message = f"worker {self._worker.worker_id} was restarted; its earlier KV is gone, ask the new process"
            raise PeerUnreachable(message, details={"incarnation": self._worker.incarnation})
        reason = incompatibility(self._worker.layout, request.sink.layout)
        if reason is None and request.transport not in self._worker.layout.transports:
            reason = f"transport {request.transport} is not one of {', '.join(self._worker.layout.transports)}"
        if reason is None and request.transport not in self._transports:
            reason = f"transport {request.transport} is not available in this process"
        if reason is not None:
            raise PeerIncompatible(f"{self._worker.worker_id} cannot serve {request.sink.worker_id}: {reason}")

    def _replace(self, sink: WorkerInfo) -> None:
        old = self._channel_of.get(sink.worker_id)
        if old is not None:
            self.drop(old, ChannelBroken(f"sink {sink.worker_id} opened a new channel"))
        if len(self._open) >= self._config.max_channels:
            message = f"{len(self._open)} channels are open, the most that max_channels allows; raise it or retry"
            raise Overloaded(message, retry_after_s=1.0)

    def _offer(self, sink: WorkerInfo) -> ChannelOffer:
        incarnation, epoch = self._epochs.pop(sink.worker_id, (sink.incarnation, 0))
        epoch = epoch + 1 if incarnation == sink.incarnation else 1
        self._epochs[sink.worker_id] = (sink.incarnation, epoch)
        while len(self._epochs) > MAX_REMEMBERED_SINKS:
            self._epochs.popitem(last=False)
        channel_id = f"{self._worker.worker_id}-{uuid.uuid4().hex[:12]}"
        return ChannelOffer(
            channel_id=channel_id,
            epoch=epoch,
            layout=self._worker.layout,
            max_message_bytes=max(self._config.max_message_bytes, token_bytes(self._worker.layout), PROOF_BYTES),
            secret=new_secret(),
        )
