"""The sink of KV: keeps channels to sources and fetches tickets into reserved blocks.

A fetch goes: wait for the channel, register where its chunks land, ask the source, take chunks as the prefill computes
them, verify each, then renew the ticket's lease *after* the last copy (KV whose ticket expired meanwhile may have been
overwritten at the source and is worth nothing), then give the ticket back. Corrupt messages and broken channels are
survived, within bounds: what was verified stays. The reserved blocks have a lease, too, that every message renews.

Everything here belongs to the event loop; bytes are received and written on the channels' threads.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.common.errors import BatonError, ChannelBroken, KvCorrupt, PeerUnreachable, ReservationExpired
from services.common.rpc.channel import timeout_left
from services.common.types import Handoff, WorkerInfo
from services.kvtransfer.background import Background
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.fetching import Fetched, Fetching, Target, channel_to, renew_ticket
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.peer import Peer
from services.kvtransfer.releases import Releases
from services.kvtransfer.transport.available import AVAILABLE
from services.kvtransfer.transport.base import Transports

MAX_FAILURES = 4  # in a row, without a verified message in between
RENEWALS_PER_LEASE = 3

_COUNTS = ("fetches_total", "fetch_failures_total", "refetches_total", "reservations_expired_total")

T = TypeVar("T")


class KvSink:
    """Channels and fetches of one decode worker; calls `on_channel` when one was proven or broke. Loop-owned."""

    def __init__(
        self, kv: KvBlocks, worker: WorkerInfo, config: TransferConfig, transports: Transports = AVAILABLE
    ) -> None:
        self._kv = kv
        self._worker = worker
        self._config = config
        self._transports = transports
        self.peers: dict[tuple[str, str], Peer] = {}
        self._background = Background()
        self.on_channel: Callable[[], None] = lambda: None
        self._is_closed = False
        self._num_fetches = 0
        self._no_fetches = asyncio.Event()
        self._no_fetches.set()
        self._releases = Releases(config)
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._past: Counter[str] = Counter()

    @property
    def proven(self) -> tuple[str, ...]:
        """Incarnations of the sources to which there is a proven channel, sorted."""
        return tuple(sorted(peer.incarnation for peer in self.peers.values() if peer.is_ready))

    def is_connected(self, worker_id: str, incarnation: str) -> bool:
        """Whether there is a proven channel to this process."""
        return (worker_id, incarnation) in self.peers and incarnation in self.proven

    async def connect(self, worker: WorkerInfo) -> None:
        """Opens a channel to a source and keeps it; returns once it is proven. Idempotent.

        An earlier process of the same worker is dropped at once. After an error the channel is still tried again and
        again in the background, until `disconnect`, except where it can never work.

        Raises:
            PeerIncompatible: the source does not fit, ever.
            BatonError: it could not be opened now.
        """
        for key, peer in list(self.peers.items()):
            if key[0] == worker.worker_id and key[1] != worker.incarnation:
                self._abandon(peer, PeerUnreachable(f"worker {worker.worker_id} was restarted; its KV is gone"))
        peer = self._peer((worker.worker_id, worker.incarnation, worker.address))
        peer.is_wanted = True
        await peer.ready(time.monotonic() + self._config.connect_timeout_s)

    async def disconnect(self, worker_id: str) -> None:
        """Drops every channel to a worker; its fetches fail at once. Idempotent."""
        for key, peer in list(self.peers.items()):
            if key[0] == worker_id:
                await self._drop(peer, PeerUnreachable(f"worker {worker_id} has left; use another one"))

    async def close(self) -> None:
        """Drops every channel, ends every fetch and waits, bounded, for threads and calls; idempotent."""
        self._is_closed = True
        error = PeerUnreachable("this worker shuts down; use another one")
        peers = list(self.peers.values())
        for peer in peers:
            peer.end(error)
        # Fetches end now and give their tickets back over connections that are still open.
        await self._quiet(self._config.call_timeout_s)
        await asyncio.gather(*(self._drop(peer, error) for peer in peers))
        await self._releases.close()
        await self._background.close()

    async def await_ticket(self, handoff: Handoff, request_id: str, deadline: float) -> float:
        """Waits until the prompt is admitted at the source; gives the length of the ticket's lease in seconds.

        Reserve blocks only after this: its prompt then ends without needing anything of this worker, so that the two
        pools, however full, never wait for each other.

        Raises:
            BatonError: as `fetch` does.
        """
        with self._peer_of(handoff).in_use() as peer:
            await channel_to(peer, time.monotonic() + self._config.channel_wait_s, deadline)
            return await peer.client.await_ticket(request_id, handoff.ticket_id, deadline)

    async def hold(self, handoff: Handoff, lease_s: float, waiting: "asyncio.Future[T]", deadline: float) -> T:
        """Waits for something local and keeps the ticket's lease alive meanwhile.

        Raises:
            BatonError: as `fetch` does.
        Cancel: safe; `waiting` is the caller's.
        """
        with self._peer_of(handoff).in_use() as peer:
            while not (await asyncio.wait({waiting}, timeout=lease_s / RENEWALS_PER_LEASE))[0]:
                await renew_ticket(peer, handoff.ticket_id, deadline, self._config.call_timeout_s)
        return waiting.result()

    def give_back(self, handoff: Handoff) -> None:
        """Tells the source that nobody will fetch a ticket, opened or not; `fetch` does so by itself."""
        with contextlib.suppress(BatonError):  # this worker shuts down: the lease ends the ticket
            uses = contextlib.ExitStack()
            peer = uses.enter_context(self._peer_of(handoff).in_use())
            self._releases.start(peer, handoff.ticket_id, "", uses)

    async def fetch(
        self,
        handoff: Handoff,
        request_id: str,
        block_ids: Sequence[int],
        start_token: int,
        num_tokens: int,
        deadline: float,
    ) -> Fetched:
        """Brings the KV of a prompt's positions [start_token, num_tokens) into reserved blocks.

        Waits for a prefill that has not started yet. Whether it returns, raises or is cancelled: afterwards nothing
        writes into the blocks any more.

        Args:
            handoff: The ticket and who has it.
            request_id: For logs on both sides.
            block_ids: Block table for `num_tokens` positions, reserved for this request alone.
            start_token: First position to fetch; what lies before is in the blocks already.
            num_tokens: Tokens of the prompt.
            deadline: On the monotonic clock, in seconds.

        Raises:
            TicketUnknown, TicketExpired, KvCorrupt, ChannelBroken: the KV did not arrive.
            ReservationExpired: none of it came for a whole lease.
            PeerUnreachable, PeerIncompatible: the source is gone or does not fit.
            DeadlineExceeded: the time is up.
            BatonError: what the prefill failed with.
        """
        target = Target(request_id, tuple(block_ids), start_token, num_tokens)
        fetch = Fetching(handoff, target, deadline, self._kv, self._config)
        self._counts["fetches_total"] += 1
        self._num_fetches += 1
        self._no_fetches.clear()
        try:
            return await fetch.within_lease(self._fetch(fetch, handoff))
        except BaseException as error:
            self._counts["fetch_failures_total"] += 1
            self._counts["reservations_expired_total"] += isinstance(error, ReservationExpired)
            raise
        finally:
            self._num_fetches -= 1
            fetch.give_back(self._releases)
            if self._num_fetches == 0:
                self._no_fetches.set()

    def stats(self) -> dict[str, int]:
        """Every count of channels and fetches."""
        total = Counter(self._past)
        for peer in self.peers.values():
            total.update(peer.stats())
        return {
            **total,
            "channels": len(self.proven),
            "peers": len(self.peers),
            "fetches": self._num_fetches,
            "background_calls": len(self._background),
            **self._releases.stats(),
            **self._counts,
        }

    async def _fetch(self, fetch: Fetching, handoff: Handoff) -> Fetched:
        failures, patience = 0, time.monotonic() + self._config.channel_wait_s
        while True:
            peer, before = self._peer_of(handoff), fetch.next_token
            try:
                end = await fetch.attempt(peer, patience)
            except (KvCorrupt, ChannelBroken):
                failures = 1 if fetch.next_token > before else failures + 1
                patience = time.monotonic() + self._config.refetch_s if failures == 1 else patience
                timeout_left(fetch.deadline)
                if failures == MAX_FAILURES or self._is_closed or time.monotonic() >= patience:
                    raise
                self._counts["refetches_total"] += 1
                continue
            return await fetch.revalidate(peer, end)

    def _peer_of(self, handoff: Handoff) -> Peer:
        return self._peer((handoff.worker_id, handoff.incarnation, handoff.address))

    def _peer(self, source: tuple[str, str, str]) -> Peer:
        if self._is_closed:
            raise PeerUnreachable("this worker shuts down; use another one")
        if (key := source[:2]) not in self.peers:
            peer = self.peers[key] = Peer(source, self._worker, self._config, self._transports, self._gone)
            peer.on_channel = lambda: self.on_channel()
        return self.peers[key]

    async def _drop(self, peer: Peer, error: BatonError) -> None:
        self._forget(peer)
        await peer.close(error)

    def _gone(self, peer: Peer) -> None:
        """A peer ended by itself."""
        self._abandon(peer, PeerUnreachable(f"worker {peer.worker_id} is gone"))

    def _abandon(self, peer: Peer, error: BatonError) -> None:
        """Drops a peer now and cleans up behind it: a thread may stay in a receive until that is over."""
        self._forget(peer)
        peer.end(error)
        self._background.start(peer.close(error))

    def _forget(self, peer: Peer) -> None:
        key = (peer.worker_id, peer.incarnation)
        if self.peers.get(key) is peer:
            del self.peers[key]
            self._past.update(peer.counts)

    async def _quiet(self, timeout_s: float) -> None:
        """Waits, bounded, until no fetch runs and no call is under way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._no_fetches.wait()
                await self._releases.finish()
                await self._background.finished()
