"""One source as a sink sees it: a task that owns the channel to it and rebuilds it.

    ──▶ connecting ──▶ ready ──▶ (broken) ──pause──▶ connecting …
            └──▶ gone: the process was restarted, does not fit, or nobody wants it any more

One task per source process, so that connecting is serialised and idempotent by construction. Loop-owned.
"""

import asyncio
import contextlib
from collections.abc import Callable, Generator

from services.common.errors import (
    BatonError,
    ChannelBroken,
    DeadlineExceeded,
    Internal,
    PeerIncompatible,
    PeerUnreachable,
)
from services.common.log import get_logger
from services.common.types import WorkerInfo
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import ChannelRequest
from services.kvtransfer.probe import keep_proven, probe
from services.kvtransfer.sink_channel import SinkChannel, open_sink_channel
from services.kvtransfer.transport.base import Transports

# Counts of a channel that outlive it.
_TOTALS = (
    "checksum_failures_total",
    "messages_dropped_total",
    "stale_messages_total",
    "received_messages",
    "received_bytes",
)

_log = get_logger(__name__)


class Peer:
    """Owns the channel to one process of one source.

    A peer that `is_wanted` is kept connected; one that only a fetch asked for ends with its channel. `on_gone` is
    called when the task ends by itself, `on_channel` when a channel was proven or broke.
    """

    def __init__(
        self,
        source: tuple[str, str, str],
        sink: WorkerInfo,
        config: TransferConfig,
        transports: Transports,
        on_gone: Callable[["Peer"], None],
    ) -> None:
        self.worker_id, self.incarnation, address = source
        self.client = KvTransferClient(address, f"worker {self.worker_id}")
        self.is_wanted = False
        self.channel: SinkChannel | None = None
        self._sink = sink
        self._config = config
        self._transports = transports
        self._on_gone = on_gone
        self._final: BatonError | None = None
        self._failures = 0
        self._num_users = 0
        self._was_open = False
        self._kick = asyncio.Event()
        self._waiters: set[asyncio.Future[SinkChannel]] = set()
        self._ending: SinkChannel | None = None
        self.on_channel: Callable[[], None] = lambda: None
        self.counts = {"channels_opened_total": 0, "channels_aborted_total": 0, "connect_failures_total": 0}
        self._probing: asyncio.Task[None] | None = None
        self._owner = asyncio.create_task(self._own(), name=f"kv-peer-{self.worker_id}")

    @contextlib.contextmanager
    def in_use(self) -> Generator["Peer"]:
        """Keeps the connection while somebody calls the source, although nobody wants the channel to be kept."""
        self._num_users += 1
        try:
            yield self
        finally:
            self._num_users -= 1

    @property
    def is_ready(self) -> bool:
        """True while there is a proven channel."""
        return self.channel is not None and self.channel.is_ready

    async def ready(self, deadline: float) -> SinkChannel:
        """The open channel; waits for the attempt that runs, or starts one.

        Raises:
            BatonError: the attempt failed, or the deadline (loop time) came first.
        """
        if self.channel is not None and self.channel.is_ready:
            return self.channel
        if self._final is not None:
            raise self._final.with_traceback(None)
        waiter: asyncio.Future[SinkChannel] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._kick.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            raise DeadlineExceeded(f"no channel to worker {self.worker_id} could be opened in time") from None
        finally:
            self._waiters.discard(waiter)

    @property
    def is_gone(self) -> bool:
        """True once this process of the source is of no more use."""
        return self._final is not None

    async def probe(self, deadline: float) -> None:
        """Carries a known pattern over the channel, opening one first where there is none.

        Raises:
            BatonError: it did not come by `deadline` (monotonic).
        """
        await probe(await self.ready(deadline), self.client, deadline)

    async def close(self, error: BatonError) -> None:
        """Ends the task, breaks the channel and waits, bounded, for its thread; idempotent."""
        self.end(error)
        self._owner.cancel()
        tasks = [self._owner] if self._probing is None else [self._owner, self._probing]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
        if self._ending is not None:
            await self._ending.channel.wait_ended(self._config.longest_operation_s)

    def stats(self) -> dict[str, int]:
        """The channel's counts and totals."""
        live = {} if self.channel is None else self.channel.stats()
        return {**live, "channels": int(self.is_ready), **self.counts}

    async def _own(self) -> None:
        while self._final is None:
            self._was_open = False
            try:
                await self._live()
            except BatonError as error:
                self._failed(error)
            except Exception:  # noqa: BLE001 - a bug here must not leave fetches waiting
                _log.exception("kv_peer_failed", worker_id=self.worker_id)
                self.end(Internal(f"connecting to worker {self.worker_id} failed; its log has the reason"))
            if self._final is None:
                await self._pause()
        self._on_gone(self)

    async def _live(self) -> None:
        """Opens a channel and serves it until it breaks.

        Raises:
            BatonError: why it could not be opened, or broke.
        """
        transport = self._transport()
        request = ChannelRequest(sink=self._sink, source_incarnation=self.incarnation, transport=transport)
        async with contextlib.aclosing(self.client.open_channel(request)) as events:
            try:
                async with asyncio.timeout(self._config.connect_timeout_s):
                    opening = open_sink_channel(self.client, events, request, self._config, self._transports[transport])
                    channel = await opening
            except TimeoutError:
                seconds = self._config.connect_timeout_s
                message = f"worker {self.worker_id} did not open a channel within {seconds:g} s; check its network"
                raise PeerUnreachable(message) from None
            self._opened(channel)
            try:
                await self._serve(channel)
            finally:
                self._broke(channel)

    async def _serve(self, channel: SinkChannel) -> None:
        """Takes what comes over a channel until it breaks, and makes sure that a quiet one still carries.

        What `run` raises leaves without a wait: a fetch that failed with it must find the channel broken.
        """
        serving = asyncio.timeout(None)
        self._probing = asyncio.create_task(keep_proven(channel, self.client, self._config, serving), name="kv-probing")
        try:
            async with serving:
                await channel.run()
        except TimeoutError:
            raise (channel.channel.error or ChannelBroken("the channel was given up")).with_traceback(None) from None
        finally:
            self._probing.cancel()

    def _opened(self, channel: SinkChannel) -> None:
        self.channel, self._failures, self._was_open = channel, 0, True
        self.counts["channels_opened_total"] += 1
        self.on_channel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(channel)

    def _broke(self, channel: SinkChannel) -> None:
        self.channel, self._ending = None, channel
        self.counts["channels_aborted_total"] += 1
        for name in _TOTALS:
            self.counts[name] = self.counts.get(name, 0) + channel.stats().get(name, 0)
        message = f"the channel to worker {self.worker_id} broke; the KV can be fetched again over a new one"
        channel.abort(self._final or channel.channel.error or ChannelBroken(message))
        self.on_channel()

    def _failed(self, error: BatonError) -> None:
        """Decides whether to go on. Whoever waits is told of a failed attempt, not of the end of an earlier channel."""
        incarnation = error.details.get("incarnation", self.incarnation)
        is_needed = self.is_wanted or (self._was_open and self._num_users > 0)
        if isinstance(error, PeerIncompatible) or incarnation != self.incarnation or not is_needed:
            self.end(error)
        elif not self._was_open:
            self._failures += 1
            self.counts["connect_failures_total"] += 1
            self._fail_waiters(error)

    def end(self, error: BatonError) -> None:
        """Breaks the channel and fails whoever waits for it; the peer is of no more use. Idempotent."""
        if self._final is None:
            self._final = error
        self._fail_waiters(error)
        if self.channel is not None:
            self.channel.abort(error)

    def _fail_waiters(self, error: BatonError) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # marks it as seen: whoever waits may be cancelled

    async def _pause(self) -> None:
        """Waits longer after each failure, unless a fetch cannot wait."""
        if self._waiters:
            return
        self._kick.clear()
        pause_s = min(self._config.max_backoff_s, self._config.min_backoff_s * 2 ** min(self._failures, 16))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._kick.wait()

    def _transport(self) -> str:
        for name in self._sink.layout.transports:
            if name in self._transports:
                return name
        listed = ", ".join(self._sink.layout.transports) or "none"
        raise PeerIncompatible(f"this process has none of its layout's transports ({listed})")
