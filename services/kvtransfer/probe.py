"""A tiny transfer over an open channel, on demand: shows that its data link still carries.

The source sends a known pattern as the only message of a fetch that has no ticket, in turn with the KV that is on its
way; the sink compares it and lands it nowhere.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable

from torch import Tensor

from services.common.errors import BatonError, ChannelBroken, DeadlineExceeded, KvCorrupt
from services.common.log import get_logger
from services.common.types import KvLayout
from services.kvtransfer.checksum import checksum_of, probe_bytes, read_bytes
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.events import ChunkHeader, FetchEnd, ProbeOrder
from services.kvtransfer.sink_channel import SinkChannel

_log = get_logger(__name__)


class ProbeLanding:
    """Takes the pattern at the sink. Loop: `arrived`, `fail`, `complete`. Channel's thread: `land`."""

    def __init__(self, probe_id: str) -> None:
        self.fetch_id = probe_id
        self.next_token = 0
        self.on_progress: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.arrived: asyncio.Future[None] = self._loop.create_future()

    def land(self, header: ChunkHeader, data: Tensor, layout: KvLayout) -> BatonError | None:
        """Compares what came with what must come; says what is wrong."""
        is_same = read_bytes(data) == probe_bytes(header.num_bytes, header.epoch, b"")
        if not is_same or checksum_of(data) != header.checksum:
            return KvCorrupt(f"probe {self.fetch_id} arrived changed")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._arrive)
        return None

    def complete(self, end: FetchEnd) -> None:
        """A probe is complete when it has come; its source says nothing more of it."""

    def fail(self, error: BatonError) -> None:
        """The channel broke first."""
        if not self.arrived.done():
            self.arrived.set_exception(error)
            self.arrived.exception()  # marks it as seen: whoever waits may be gone

    def _arrive(self) -> None:
        if not self.arrived.done():
            self.arrived.set_result(None)


async def probe(channel: SinkChannel, client: KvTransferClient, deadline: float) -> None:
    """Carries a pattern from the source over the channel by `deadline` (monotonic).

    Raises:
        DeadlineExceeded: it did not come in time.
        BatonError: the channel is broken, or the source is gone.
    """
    landing = ProbeLanding(uuid.uuid4().hex)
    order = ProbeOrder(channel_id=channel.offer.channel_id, epoch=channel.offer.epoch, probe_id=landing.fetch_id)
    channel.expect(landing)
    try:
        await client.probe(order, deadline)
        async with asyncio.timeout_at(deadline):
            await asyncio.shield(landing.arrived)
    except TimeoutError:
        message = f"a probe of channel {order.channel_id} did not come in time; its data link may be dead"
        raise DeadlineExceeded(message) from None
    finally:
        channel.forget(landing)


async def keep_proven(
    channel: SinkChannel, client: KvTransferClient, config: TransferConfig, serving: asyncio.Timeout
) -> None:
    """Probes a channel whenever it was quiet for a while; one that fails breaks it and ends whoever is `serving` it."""
    if not config.probe_interval_s:
        return
    try:
        await _probe_when_quiet(channel, client, config)
    except BatonError as error:
        _log.warning("channel_probe_failed", channel_id=channel.offer.channel_id, error=error.message)
        channel.abort(ChannelBroken(f"a probe of channel {channel.offer.channel_id} failed: {error.message}"))
        if not serving.expired():
            serving.reschedule(0.0)


async def _probe_when_quiet(channel: SinkChannel, client: KvTransferClient, config: TransferConfig) -> None:
    while True:
        seen = channel.sequence
        await asyncio.sleep(config.probe_interval_s)
        if channel.sequence != seen:
            continue
        try:
            await probe(channel, client, time.monotonic() + config.operation_floor_s)
        except DeadlineExceeded:
            if channel.sequence == seen:  # else KV is on its way, each message with a limit of its own
                raise
