"""The source's side of a channel: sends the KV of the fetches that run on it, fairly and in announced order.

Turns tickets into messages: stages a message (reads blocks, hashes), yields its header for the stream, then sends its
bytes. Every staged message is sent or the channel breaks; a ticket's blocks are pinned only while a message is staged,
so a fetch that is stopped leaves nothing in its blocks.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import replace

from torch import Tensor

from services.common.errors import BatonError, ChannelBroken, Internal, PermissionDenied, QueueFull
from services.kvtransfer.channel import Channel, ChannelState
from services.kvtransfer.checksum import checksum_of
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import ChannelEvent, ChunkHeader, FetchEnd, ProbeOrder
from services.kvtransfer.joining import Opening
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.probe_messages import probe_header, stage_probe
from services.kvtransfer.proof import is_same
from services.kvtransfer.rendezvous import SourceKeys
from services.kvtransfer.sending import Ahead, Sending, Staged, TicketReads
from services.kvtransfer.staging import Staging, as_kv, token_bytes
from services.kvtransfer.tickets import Ticket, TicketState
from services.kvtransfer.transport.base import Transport

MAX_PROBES = 8


class SourceChannel:
    """Sends on one channel. Loop-owned; reading blocks and sending run on the channel's thread."""

    def __init__(
        self,
        channel: Channel,
        opening: Opening,
        kv: KvBlocks,
        tickets: TicketReads,
        config: TransferConfig,
    ) -> None:
        self.channel = channel
        self.offer = opening.offer
        self._opening = opening
        self.waiting: set[asyncio.Future[None]] = set()
        self._kv = kv
        self._tickets = tickets
        self._config = config
        self._token_bytes = token_bytes(kv.layout)
        self._message_tokens = max(1, self.offer.max_message_bytes // self._token_bytes)
        self._turns: deque[Sending] = deque()
        self._probes: deque[ProbeOrder] = deque()
        self._ahead: deque[Ahead] = deque()
        self._sequence = 0
        self._changed = asyncio.Event()
        self.sent_tokens = 0

    @property
    def num_fetches(self) -> int:
        """Fetches that are not over."""
        return len(self._turns)

    def is_sending(self, ticket_id: str) -> bool:
        """True while a fetch of the ticket is not over."""
        return any(fetch.ticket.ticket_id == ticket_id for fetch in self._turns)

    def add(self, fetch_id: str, ticket: Ticket, start_token: int) -> None:
        """Starts to send a ticket's KV from `start_token` on; takes the place of an earlier fetch of the ticket."""
        self._turns = deque(fetch for fetch in self._turns if fetch.ticket is not ticket)
        self._turns.append(Sending(fetch_id, ticket, start_token))
        self.wake()

    def probe(self, order: ProbeOrder) -> None:
        """Sends a known pattern in turn.

        Raises:
            QueueFull: so many probes wait already that the channel does not carry them.
        """
        if len(self._probes) >= MAX_PROBES:
            raise QueueFull(f"{MAX_PROBES} probes of channel {self.offer.channel_id} wait already", retry_after_s=1.0)
        self._probes.append(order)
        self.wake()

    def keys(self, secret: bytes) -> SourceKeys:
        """The keys of the channel, for the sink that it was offered to.

        Raises:
            PermissionDenied: the secret is not that of the offer.
        """
        if not is_same(secret, self.offer.secret):
            raise PermissionDenied(f"this is not the secret that channel {self.offer.channel_id} was offered with")
        return self._opening.keys

    def wake(self) -> None:
        """Something changed: a ticket advanced, finished or is gone."""
        self._changed.set()

    def abort(self, error: BatonError) -> None:
        """Breaks the channel and drops its fetches; their tickets stay. Idempotent."""
        self.channel.abort(error)
        self._opening.keys.close()
        self._turns.clear()
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.wake()

    async def events(self) -> AsyncGenerator[ChannelEvent]:
        """Everything that goes on the stream, in order; ends only by an error or by being closed.

        Raises:
            ChannelBroken: the channel is dead.
        """
        yield self.offer
        await self._within_connect_timeout(self.channel.open())
        await asyncio.shield(self.channel.submit(self._opening.joining.receive_proof))
        header, data = await asyncio.shield(self.channel.submit(self._opening.joining.stage_probe))
        yield header
        await asyncio.shield(self.channel.submit(lambda link, staging: self._send(link, staging, data)))
        self._sequence = 1
        self.channel.mark_ready()
        while self.channel.state is ChannelState.READY:
            self._plan_ahead()
            if not self._ahead:
                self._changed.clear()
                await self._changed.wait()
                continue
            item = self._ahead.popleft()
            if isinstance(item, FetchEnd):
                yield item
                continue
            staged = await asyncio.shield(item)
            yield staged.header
            await asyncio.shield(self._submit_send(staged))
        raise (self.channel.error or ChannelBroken("the channel was closed")).with_traceback(None)

    def _submit_send(self, staged: Staged) -> asyncio.Future[None]:
        self.sent_tokens += staged.header.end_token - staged.header.start_token
        return self.channel.submit(lambda link, staging: self._send(link, staging, staged.data))

    def _plan_ahead(self) -> None:
        """Stages as many messages as staging holds, one fetch after the other."""
        while sum(isinstance(item, asyncio.Future) for item in self._ahead) < self.channel.staging.max_buffers:
            item = self._next_item()
            if item is None:
                return
            self._ahead.append(item)

    def _next_item(self) -> Ahead | None:
        if self._probes:
            return self._stage_probe(self._probes.popleft())
        for _ in range(len(self._turns)):
            fetch = self._turns.popleft()
            item = self._plan(fetch)
            if not isinstance(item, FetchEnd):
                self._turns.append(fetch)
            if item is not None:
                return item
        return None

    def _plan(self, fetch: Sending) -> Ahead | None:
        """The next thing to say or send for a fetch; None where its prefill has not got further."""
        ticket = fetch.ticket
        if not ticket.is_live:
            error = ticket.error or Internal("the ticket closed without a reason")
            return FetchEnd(fetch_id=fetch.fetch_id, error=type(error).__name__, error_message=error.message)
        if fetch.next_token < ticket.computed_tokens:
            return self._stage(fetch)
        if ticket.state is TicketState.READY:
            since = time.monotonic() if ticket.finished_at is None else ticket.finished_at
            return FetchEnd(
                fetch_id=fetch.fetch_id,
                first_tokens=ticket.first_tokens,
                stages=replace(ticket.stages, handoff_ns=round((time.monotonic() - since) * 1e9)),
                cached_tokens=ticket.cached_tokens,
            )
        return None

    def _stage(self, fetch: Sending) -> asyncio.Future[Staged] | None:
        start = fetch.next_token
        end = min(fetch.ticket.computed_tokens, start + self._message_tokens)
        header = ChunkHeader(
            sequence=self._sequence,
            fetch_id=fetch.fetch_id,
            epoch=self.offer.epoch,
            start_token=start,
            end_token=end,
            num_bytes=(end - start) * self._token_bytes,
        )
        ticket = self._tickets.begin_read(fetch.ticket.ticket_id)
        if ticket is None:
            return None
        try:
            future = self.channel.submit(lambda _, staging: self._read(staging, header, ticket.block_ids))
        except BatonError:
            self._tickets.end_read(ticket)
            raise
        future.add_done_callback(lambda _: self._tickets.end_read(ticket))
        fetch.next_token = end
        self._sequence += 1
        return future

    def _stage_probe(self, order: ProbeOrder) -> asyncio.Future[Staged]:
        header = probe_header(order, self._sequence, self.offer.max_message_bytes)
        future = self.channel.submit(lambda _, staging: stage_probe(header, staging))
        self._sequence += 1
        return future

    async def _within_connect_timeout(self, opening: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await opening
        except TimeoutError:
            message = f"the sink did not join the channel within {self._config.connect_timeout_s:g} s"
            raise ChannelBroken(message) from None

    def _read(self, staging: Staging, header: ChunkHeader, block_ids: tuple[int, ...]) -> Staged:
        """On the channel's thread: copies a chunk out of the blocks into one contiguous buffer and hashes it."""
        data = staging.take(header.num_bytes)
        self._kv.read(block_ids, header.start_token, header.end_token, as_kv(data, self._kv.layout))
        checksum = checksum_of(data) if self._config.checksum else None
        return Staged(replace(header, checksum=checksum), data)

    def _send(self, link: Transport, staging: Staging, data: Tensor) -> None:
        """On the channel's thread: sends a staged message and gives its buffer back.

        The time limit depends on the bytes alone, not on the fetch's deadline: a send that times out breaks the channel
        for every fetch, so one fetch that runs out of time must not decide it.
        """
        try:
            link.send(data, self._config.operation_timeout_s(data.numel()))
        finally:
            staging.give(data)
