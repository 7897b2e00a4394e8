"""The sink's side of a channel: receives what the source announces, in that order, into the landings of fetches.

A header is followed at once by its receive, never the other way round: a receive that nobody sends to would block the
channel's thread. Whatever does not fit (sequence, epoch, size) breaks the channel, because the two sides no longer
agree on what is on the wire.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial

from services.common.errors import BatonError, ChannelBroken, PeerIncompatible, error_classes
from services.kvtransfer.channel import Channel, ChannelState
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.compatibility import incompatibility
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import (
    ChannelEvent,
    ChannelOffer,
    ChannelProbe,
    ChannelRequest,
    ChunkHeader,
    FetchEnd,
    KeyOrder,
)
from services.kvtransfer.joining import Joining
from services.kvtransfer.landing import Lands
from services.kvtransfer.proof import PROOF_BYTES, Introduction
from services.kvtransfer.rendezvous import SinkKeys
from services.kvtransfer.staging import Staging
from services.kvtransfer.transport.base import SINK_RANK, Meeting, OpenTransport, Transport

Events = AsyncGenerator[ChannelEvent]


class SinkChannel:
    """Receives on one channel. Loop-owned; receiving, verifying and writing run on the channel's thread."""

    def __init__(
        self,
        introduced: tuple[ChannelOffer, Joining],
        events: Events,
        keys: SinkKeys,
        config: TransferConfig,
        open_transport: OpenTransport,
    ) -> None:
        offer, self._joining = introduced
        self.offer = offer
        self._events = events
        self._config = config
        self._landings: dict[str, Lands] = {}
        self._sequence = 0
        self._counts = {"checksum_failures_total": 0, "messages_dropped_total": 0, "stale_messages_total": 0}
        meeting = Meeting(
            rank=SINK_RANK,
            name=f"{offer.channel_id}/{offer.epoch}",
            keys=keys,
            host=config.kv_host,
            interface=config.kv_interface,
        )
        build = partial(open_transport, meeting, config.connect_timeout_s)
        staging = Staging(offer.max_message_bytes, offer.max_message_bytes, is_pinned=config.pin_staging)
        self.channel = Channel(offer.channel_id, build, staging)

    @property
    def is_ready(self) -> bool:
        """True while the channel carries KV."""
        return self.channel.state is ChannelState.READY

    @property
    def sequence(self) -> int:
        """Messages so far."""
        return self._sequence

    async def open(self) -> None:
        """Joins the source and receives its probe.

        Raises:
            BatonError: the two sides could not be joined, or the probe is wrong.
        """
        await self.channel.open()
        await asyncio.shield(self.channel.submit(self._joining.send_proof))
        probe = await next_event(self._events)
        sizes = range(PROOF_BYTES, self.offer.max_message_bytes + 1)
        if not isinstance(probe, ChannelProbe) or probe.num_bytes not in sizes:
            raise ChannelBroken(f"the source began channel {self.offer.channel_id} without a probe")
        error = await asyncio.shield(self.channel.submit(partial(self._joining.receive_probe, probe)))
        if error is not None:
            raise error
        self._sequence = 1
        self.channel.mark_ready()

    async def run(self) -> None:
        """Serves the channel until it breaks.

        Raises:
            BatonError: why it broke.
        """
        while True:
            event = await next_event(self._events)
            if isinstance(event, ChunkHeader):
                await self._take_chunk(event)
            elif isinstance(event, FetchEnd):
                self._take_end(event)
            else:
                raise ChannelBroken(f"the source sent a {type(event).__name__} in the middle of the channel")

    def expect(self, landing: Lands) -> None:
        """Takes the chunks of a fetch from now on.

        Raises:
            ChannelBroken: the channel is broken.
        """
        if self.channel.error is not None:
            raise self.channel.error.with_traceback(None)
        self._landings[landing.fetch_id] = landing

    def forget(self, landing: Lands) -> None:
        """Receives and drops whatever still comes for a fetch; idempotent."""
        self._landings.pop(landing.fetch_id, None)

    def abort(self, error: BatonError) -> None:
        """Breaks the channel and fails its fetches; idempotent."""
        self.channel.abort(error)
        for landing in self._landings.values():
            landing.fail(error)
        self._landings.clear()

    def stats(self) -> dict[str, int]:
        """Fetches in flight, traffic, staging, what was wrong or dropped."""
        return {**self.channel.stats(), "fetches": len(self._landings), **self._counts}

    async def _take_chunk(self, header: ChunkHeader) -> None:
        if header.sequence != self._sequence or header.epoch != self.offer.epoch:
            self._counts["stale_messages_total"] += header.epoch != self.offer.epoch
            message = f"message {header.sequence} of epoch {header.epoch} came where {self._sequence} was expected"
            raise ChannelBroken(message)
        if not 0 < header.num_bytes <= self.offer.max_message_bytes:
            raise ChannelBroken(f"message {header.sequence} of {header.num_bytes} bytes is larger than was agreed")
        self._sequence += 1
        landing = self._landings.get(header.fetch_id)
        error = await asyncio.shield(self.channel.submit(partial(self._receive, header, landing)))
        if landing is None or (error is None and landing.next_token < header.end_token):
            self._counts["messages_dropped_total"] += 1  # its fetch was given up, before or while it came
        elif error is None and landing.on_progress is not None:
            landing.on_progress()
        if error is not None and landing is not None:
            self._counts["checksum_failures_total"] += 1
            self.forget(landing)
            landing.fail(error)
            # One doubled or lost message shifts all later ones, so a channel in doubt is not used again.
            raise ChannelBroken(f"channel {self.offer.channel_id} delivered wrong bytes; a new one is built")

    def _take_end(self, end: FetchEnd) -> None:
        landing = self._landings.pop(end.fetch_id, None)
        if landing is None:
            return
        if end.error:
            landing.fail(error_of(end))
        else:
            landing.complete(end)

    def _receive(
        self, header: ChunkHeader, landing: Lands | None, link: Transport, staging: Staging
    ) -> BatonError | None:
        """On the channel's thread: receives one message and lands it.

        The time limit depends on the bytes alone, not on the fetch's deadline: see `SourceChannel`.
        """
        data = staging.take(header.num_bytes)
        try:
            link.receive(data, self._config.operation_timeout_s(header.num_bytes))
            return None if landing is None else landing.land(header, data, self.offer.layout)
        finally:
            staging.give(data)


async def open_sink_channel(
    client: KvTransferClient,
    events: Events,
    request: ChannelRequest,
    config: TransferConfig,
    open_transport: OpenTransport,
) -> SinkChannel:
    """Takes the offer that answers the request for a channel and joins the source.

    Raises:
        PeerIncompatible: the source's KV does not fit this worker.
        BatonError: the channel could not be built.
    """
    offer = await next_event(events)
    if not isinstance(offer, ChannelOffer):
        raise ChannelBroken("the source began a channel without an offer")
    reason = incompatibility(offer.layout, request.sink.layout)
    if reason is None and offer.max_message_bytes > config.staging_bytes:
        reason = f"its messages of {offer.max_message_bytes} bytes exceed staging_bytes {config.staging_bytes} here"
    if reason is not None:
        raise PeerIncompatible(f"cannot take KV from channel {offer.channel_id}: {reason}")
    introduction = Introduction(
        secret=offer.secret,
        channel_id=offer.channel_id,
        epoch=offer.epoch,
        source_incarnation=request.source_incarnation,
        sink_incarnation=request.sink.incarnation,
    )
    keys = SinkKeys(partial(_exchange, client, offer))
    joining = Joining(introduction, config.operation_timeout_s)
    channel = SinkChannel((offer, joining), events, keys, config, open_transport)
    try:
        await channel.open()
    except BaseException as error:
        broken = error if isinstance(error, BatonError) else ChannelBroken("opening the channel was given up")
        channel.abort(broken)
        raise
    return channel


async def _exchange(
    client: KvTransferClient, offer: ChannelOffer, key: str, value: bytes | None, deadline: float
) -> bytes:
    order = KeyOrder(channel_id=offer.channel_id, epoch=offer.epoch, secret=offer.secret, key=key, value=value)
    return await client.rendezvous(order, deadline)


async def next_event(events: Events) -> ChannelEvent:
    """The next event of a channel's stream.

    Raises:
        BatonError: the stream ended or broke.
    """
    with contextlib.suppress(StopAsyncIteration):
        return await anext(events)
    raise ChannelBroken("the source ended the channel")


def error_of(end: FetchEnd) -> BatonError:
    """The typed error that a failed fetch ended with; a class that only a newer source knows becomes ChannelBroken."""
    found = error_classes().get(end.error, ChannelBroken)
    return ChannelBroken(end.error_message) if found.__init__ is not BatonError.__init__ else found(end.error_message)
