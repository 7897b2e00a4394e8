"""The source of KV: keeps tickets and sends their blocks to the sinks that ask.

A prefill worker opens a ticket when it starts a prompt, advances it after each chunk, and finishes or fails it. Sinks
open channels and fetch tickets through `transfer_service.py`; a fetch may come before its ticket and then waits. The
blocks of a ticket are given back through `on_released`, once, when nobody reads them any more: after the sink released
the ticket, after its lease ended, or after its prefill failed.

Everything here belongs to the event loop; blocks are read on the channels' threads.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from services.common.errors import BatonError, ChannelBroken, Draining, FieldViolation, InvalidRequest, TicketUnknown
from services.common.types import ChoiceTokens, StageTimes, WorkerInfo
from services.kvtransfer.arrivals import Arrivals
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import ChannelEvent, ChannelRequest, FetchOrder, KeyOrder, Released
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.source_channel import SourceChannel
from services.kvtransfer.source_channels import SourceChannels
from services.kvtransfer.tickets import Ticket, TicketTable
from services.kvtransfer.transport.available import AVAILABLE
from services.kvtransfer.transport.base import Transports

OnReleased = Callable[[str], None]


class KvSource:
    """Tickets and channels of one prefill worker.

    Thread: loop-owned. `on_released` is called on the loop, never from inside another call of this class.
    """

    def __init__(
        self,
        kv: KvBlocks,
        worker: WorkerInfo,
        config: TransferConfig,
        on_released: OnReleased,
        transports: Transports = AVAILABLE,
    ) -> None:
        self._config = config
        self._on_released = on_released
        self._tickets = TicketTable(
            lease_s=config.lease_s, tombstone_s=config.tombstone_s, max_tombstones=config.max_tombstones
        )
        self.channels = SourceChannels(worker, kv, config, transports)
        self.arrivals = Arrivals()
        self._lease_changed = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        self._is_closed = False
        self._stopped = 0

    async def start(self) -> None:
        """Starts the lease timer."""
        self._reaper = asyncio.create_task(self._reap(), name="ticket-leases")

    async def close(self) -> None:
        """Breaks every channel, closes every ticket and waits until nothing reads a block; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        error = Draining("the source of the KV shut down; run the prompt on another worker")
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        for ticket_id in self._tickets.live_ids():
            self.fail(ticket_id, error)
        await self.channels.close(ChannelBroken(error.message), self._config.longest_operation_s)
        self.arrivals.wake_all()
        self._hand_back()
        await asyncio.sleep(0)  # lets the last on_released run

    @property
    def num_tickets(self) -> int:
        """Tickets that hold blocks."""
        return len(self._tickets)

    @property
    def num_channels(self) -> int:
        """Channels that are not broken."""
        return len(self.channels)

    def open(self, ticket_id: str, request_id: str, block_ids: Sequence[int], num_tokens: int) -> None:
        """A prefill has started: its blocks may be fetched as far as they are computed.

        Raises:
            ValueError: the ticket is open already.
        """
        self._tickets.open(ticket_id, request_id, block_ids, num_tokens, time.monotonic())
        self._wake(ticket_id)
        self._hand_back()

    def advance(self, ticket_id: str, computed_tokens: int) -> None:
        """Token positions below `computed_tokens` are final; ignored for a ticket that is gone."""
        self._tickets.advance(ticket_id, computed_tokens)
        self._wake()

    def finish(
        self, ticket_id: str, first_tokens: tuple[ChoiceTokens, ...], stages: StageTimes, cached_tokens: int
    ) -> None:
        """The prefill is done and the lease starts; ignored for a ticket that is gone."""
        self._tickets.finish(ticket_id, first_tokens, stages, cached_tokens, time.monotonic())
        self._lease_changed.set()
        self._wake()

    def fail(self, ticket_id: str, error: BatonError) -> None:
        """The prefill failed, maybe before the ticket was opened: fetches of it fail at once with this error."""
        self._tickets.fail(ticket_id, error, time.monotonic())
        self._wake(ticket_id)
        self._hand_back()

    async def open_channel(self, request: ChannelRequest) -> AsyncGenerator[ChannelEvent]:
        """Runs a channel for a sink; closing the generator breaks the channel.

        Raises:
            BatonError: the sink is refused (see `SourceChannels.admit`), or the channel broke.
        """
        if self._is_closed:
            raise Draining("the source of the KV shuts down; use another worker")
        channel = self.channels.admit(request, self)
        try:
            async with contextlib.aclosing(channel.events()) as events:
                async for event in events:
                    yield event
        finally:
            self.channels.drop(channel, ChannelBroken(f"channel {channel.offer.channel_id} was closed by its sink"))

    async def await_ticket(self, ticket_id: str, deadline: float) -> float:
        """Waits until a ticket is open and gives the length of its lease in seconds.

        Raises:
            BatonError: the ticket is gone (the error says why), or the deadline came first.
        """
        await self._arrival(ticket_id, None, deadline)
        return self._config.lease_s

    async def rendezvous(self, where: KeyOrder, deadline: float) -> bytes:
        """Sets or reads a key of a channel that is being built.

        Raises:
            BatonError: the channel is gone, the secret is not its own, or the key did not come in time.
        """
        keys = self.channels.find(where.channel_id, where.epoch).keys(where.secret)
        if where.value is None:
            return await keys.read(where.key, deadline)
        keys.set(where.key, where.value, 0.0)
        return where.value

    async def fetch(self, order: FetchOrder, deadline: float) -> tuple[int, float]:
        """Starts to send a ticket's KV; waits for the ticket until the deadline.

        Returns:
            The ticket's prompt tokens and the length of its lease in seconds.

        Raises:
            BatonError: the ticket is gone (the error says why), the channel broke, or the deadline came first.
        """
        channel = self.channels.find(order.channel_id, order.epoch)
        ticket = await self._arrival(order.ticket_id, channel, deadline)
        if order.request_id != ticket.request_id:
            message = f"ticket {order.ticket_id} belongs to another request; its KV would be taken for this one's"
            raise TicketUnknown(message)
        if not 0 <= order.start_token <= ticket.num_tokens:
            message = f"is {order.start_token}, must be in [0, {ticket.num_tokens}]"
            raise InvalidRequest(FieldViolation("start_token", message))
        channel.add(order.fetch_id, ticket, order.start_token)
        return ticket.num_tokens, self._config.lease_s

    def renew(self, ticket_id: str) -> float:
        """Extends a ticket's lease and returns its length in seconds.

        Raises:
            BatonError: the ticket is gone.
        """
        lease_s = self._tickets.renew(ticket_id, time.monotonic())
        return self._config.lease_s if lease_s is None else lease_s

    def release(self, ticket_id: str) -> Released:
        """Takes a ticket back and stops its prompt and its fetches, whatever of it still runs. Idempotent."""
        is_computing = self._tickets.is_computing(ticket_id)
        is_sending = self.channels.is_sending(ticket_id)
        if not self._tickets.release(ticket_id, time.monotonic()):
            self._wake(ticket_id)
            return Released(was_open=False)
        self._stopped += is_computing or is_sending
        self._wake(ticket_id)
        self._hand_back()
        return Released(was_open=True, stopped_prefill=is_computing, stopped_sending=is_sending)

    def begin_read(self, ticket_id: str) -> Ticket | None:
        """For channels: pins the blocks of a live ticket; None where it is gone."""
        return self._tickets.begin_read(ticket_id)

    def end_read(self, ticket: Ticket) -> None:
        """For channels: a read is over; the blocks may become free."""
        self._tickets.end_read(ticket, time.monotonic())
        self._hand_back()

    def stats(self) -> dict[str, int]:
        """Every count of tickets and channels, fetches that wait for their ticket included."""
        return {
            **self._tickets.stats(),
            **self.channels.stats(),
            "fetches_waiting": len(self.arrivals),
            "aborts_total": self._stopped,
        }

    def check(self) -> None:
        """Raises AssertionError where the books do not agree."""
        self._tickets.check()

    async def _arrival(self, ticket_id: str, channel: SourceChannel | None, deadline: float) -> Ticket:
        while True:
            ticket = self._tickets.find(ticket_id, time.monotonic())
            if channel is not None and channel.channel.error is not None:
                raise channel.channel.error.with_traceback(None)
            if ticket is not None:
                self.arrivals.on_awaited(ticket_id, True)
                return ticket
            if self._is_closed:
                raise Draining("the source of the KV shuts down; use another worker")
            await self.arrivals.wait(ticket_id, None if channel is None else channel.waiting, deadline)

    def _wake(self, *ticket_ids: str) -> None:
        for ticket_id in ticket_ids:
            self.arrivals.wake(ticket_id)
        for channel in self.channels.all():
            channel.wake()

    def _hand_back(self) -> None:
        loop = asyncio.get_running_loop()
        for ticket_id in self._tickets.take_closed():
            loop.call_soon(self._on_released, ticket_id)

    async def _reap(self) -> None:
        """Ends leases on time, also when nothing else happens."""
        while True:
            if self._tickets.expire(time.monotonic()):
                self._wake()
                self._hand_back()
            self._lease_changed.clear()
            end = self._tickets.next_expiry()
            timeout_s = None if end is None else max(0.0, end - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._lease_changed.wait()
