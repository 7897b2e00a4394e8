"""One fetch at the sink, over all its attempts: what is asked for, what has come, and how it ends.

Knows one landing at a time; which peer serves an attempt and how often to try is the sink's business.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import (
    DeadlineExceeded,
    HandoffError,
    PeerUnreachable,
    ReservationExpired,
    TicketExpired,
    TicketUnknown,
)
from services.common.types import ChoiceTokens, Handoff, StageTimes
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import FetchEnd, FetchOrder
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.landing import Landing
from services.kvtransfer.peer import Peer
from services.kvtransfer.releases import Releases
from services.kvtransfer.sink_channel import SinkChannel

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came with the KV.

    `handoff_ns` is the time from the end of the prefill until all KV was verified in the blocks.
    """

    first_tokens: tuple[ChoiceTokens, ...]
    stages: StageTimes
    cached_tokens: int
    received_bytes: int
    handoff_ns: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where the KV of one request goes: a block table for `num_tokens` positions, of which `start_token` are there."""

    request_id: str
    block_ids: tuple[int, ...]
    start_token: int
    num_tokens: int


class Fetching:
    """A fetch that runs. `next_token` is the first position that is not verified in the blocks yet."""

    def __init__(self, handoff: Handoff, target: Target, deadline: float, kv: KvBlocks, config: TransferConfig) -> None:
        self.target = target
        self.deadline = deadline
        self.next_token = target.start_token
        self.received_bytes = 0
        self._handoff = handoff
        self._kv = kv
        self._config = config
        self._peer: Peer | None = None
        self._uses = contextlib.ExitStack()
        self._fetch_id = ""
        self._lease: asyncio.Timeout | None = None

    async def within_lease(self, work: Awaitable[T]) -> T:
        """Awaits the fetch for as long as KV keeps coming, in the caller's task; every message renews the lease.

        Raises:
            ReservationExpired: nothing came for a whole lease.
        """
        try:
            async with asyncio.timeout(self._config.reservation_s) as self._lease:
                return await work
        except TimeoutError:
            message = f"worker {self._handoff.worker_id} sent nothing for {self._config.reservation_s:g} s"
            raise ReservationExpired(f"{message}; run the prompt on another one") from None
        finally:
            self._lease = None

    async def attempt(self, peer: Peer, patience: float) -> FetchEnd:
        """Fetches what is missing over the peer's channel; afterwards nothing of this attempt can write any more.

        The channel is waited for until `patience` (monotonic).

        Raises:
            BatonError: what is missing did not all come.
        """
        if peer is not self._peer:
            self._peer = self._uses.enter_context(peer.in_use())
        channel = await channel_to(peer, patience, self.deadline)
        target = self.target
        self._fetch_id = uuid.uuid4().hex
        where = (target.block_ids, self.next_token, target.num_tokens)
        landing = Landing(self._fetch_id, self._kv, *where, checksum=self._config.checksum)
        landing.on_progress = self._renew
        channel.expect(landing)
        try:
            await self._accepted(peer, self._order(channel), landing)
            return await self._arrived(landing)
        finally:
            channel.forget(landing)
            await landing.fence()
            self.next_token = landing.next_token
            self.received_bytes += landing.received_bytes

    async def revalidate(self, peer: Peer, end: FetchEnd) -> Fetched:
        """Makes sure that the lease still ran when the last byte had been copied; gives what came.

        Raises:
            TicketExpired: it did not.
        """
        arrived = time.monotonic_ns()
        try:
            await renew_ticket(peer, self._handoff.ticket_id, self.deadline, self._config.call_timeout_s)
        except TicketUnknown as error:
            message = f"ticket {self._handoff.ticket_id} ended while its KV was copied; run the prompt again"
            raise TicketExpired(message) from error
        return Fetched(
            first_tokens=end.first_tokens,
            stages=end.stages,
            cached_tokens=end.cached_tokens,
            received_bytes=self.received_bytes,
            handoff_ns=end.stages.handoff_ns + time.monotonic_ns() - arrived,
        )

    def give_back(self, releases: Releases) -> None:
        """Starts to give the ticket back, where its source was ever asked."""
        if self._peer is not None:
            releases.start(self._peer, self._handoff.ticket_id, self._fetch_id, self._uses)

    def _renew(self) -> None:
        """A message has landed."""
        if self._lease is not None and not self._lease.expired():
            self._lease.reschedule(asyncio.get_running_loop().time() + self._config.reservation_s)

    def _order(self, channel: SinkChannel) -> FetchOrder:
        return FetchOrder(
            request_id=self.target.request_id,
            fetch_id=self._fetch_id,
            ticket_id=self._handoff.ticket_id,
            channel_id=channel.offer.channel_id,
            epoch=channel.offer.epoch,
            start_token=self.next_token,
        )

    async def _accepted(self, peer: Peer, order: FetchOrder, landing: Landing) -> None:
        """Waits until the source accepts the fetch; ends at once where the channel breaks meanwhile."""
        call = asyncio.ensure_future(peer.client.fetch(order, self.deadline))
        try:
            await asyncio.wait({call, landing.arrived}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done() and landing.arrived.exception() is not None:
                return
            num_tokens, _ = await call
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        if num_tokens != self.target.num_tokens:
            message = f"ticket {order.ticket_id} is of a prompt of {num_tokens} tokens, not {self.target.num_tokens}"
            raise HandoffError(f"{message}; prefill and decode were given different prompts")

    async def _arrived(self, landing: Landing) -> FetchEnd:
        try:
            async with asyncio.timeout_at(self.deadline):
                return await asyncio.shield(landing.arrived)
        except TimeoutError:
            raise DeadlineExceeded("the KV did not arrive in time; allow more time or use another worker") from None


async def channel_to(peer: Peer, patience: float, deadline: float) -> SinkChannel:
    """The channel to a source; one that is not open by `patience` is not waited for until the deadline (monotonic).

    Raises:
        BatonError: it cannot be opened, or takes too long.
    """
    try:
        return await peer.ready(min(deadline, patience))
    except DeadlineExceeded:
        if time.monotonic() >= deadline:
            raise
    raise PeerUnreachable(f"opening a channel to worker {peer.worker_id} takes too long; use another worker")


async def renew_ticket(peer: Peer, ticket_id: str, deadline: float, timeout_s: float) -> None:
    """Extends a ticket's lease; a source that does not answer in `timeout_s` is not waited for until the deadline.

    Raises:
        BatonError: the ticket is gone, its source does not answer, or the deadline (monotonic) came.
    """
    try:
        await peer.client.renew(ticket_id, min(deadline, time.monotonic() + timeout_s))
    except DeadlineExceeded:
        if time.monotonic() >= deadline:
            raise
        raise PeerUnreachable(f"worker {peer.worker_id} did not answer within {timeout_s:g} s") from None
