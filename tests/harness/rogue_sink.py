"""A sink that begins a channel as any other and then tells the source what it likes."""

import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator

from services.common.types import Tier
from services.kvtransfer.channel import Channel
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.events import ChannelOffer, ChannelRequest, KeyOrder
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import SourceSide, worker

# The key under which gloo's sink says where it is.
SINK_KEY = "0/1"


class RogueSink:
    """Holds the channel's stream; the gloo side is whatever `say` says. `source_thread` is the source's end."""

    def __init__(self, side: SourceSide, name: str = "rogue") -> None:
        self._client = KvTransferClient(side.info.address, "source")
        request = ChannelRequest(
            sink=worker(name, Tier.DECODE, FakeKv()), source_incarnation=side.info.incarnation, transport="gloo"
        )
        self._side = side
        self._events = self._client.open_channel(request)
        self.offer: ChannelOffer
        self.source_thread: Channel

    async def begin(self) -> None:
        """Takes the offer."""
        offer = await anext(self._events)
        assert isinstance(offer, ChannelOffer)
        self.offer = offer
        self.source_thread = self._side.source.channels.find(offer.channel_id, offer.epoch).channel

    async def until_refused(self) -> None:
        """Reads what the source says until it gives the channel up, which raises."""
        while True:
            await anext(self._events)

    async def say(self, value: bytes, key: str = SINK_KEY) -> None:
        """Sets a key of the channel."""
        order = KeyOrder(
            channel_id=self.offer.channel_id,
            epoch=self.offer.epoch,
            secret=self.offer.secret,
            key=key,
            value=value,
        )
        await self._client.rendezvous(order, time.monotonic() + 30)

    async def leave(self) -> None:
        """Ends the channel's stream."""
        await self._events.aclose()

    async def close(self) -> None:
        """Ends everything."""
        await self.leave()
        await self._client.close()


@contextlib.asynccontextmanager
async def rogue_sink(side: SourceSide) -> AsyncIterator[RogueSink]:
    """A rogue that has its offer."""
    rogue = RogueSink(side)
    try:
        await rogue.begin()
        yield rogue
    finally:
        await rogue.close()


def gloo_value(port: int, host: bytes = b"rogue") -> bytes:
    """What a gloo that listens on this port of the loopback says."""
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + bytes((127, 0, 0, 1)) + bytes(120)
    address += struct.pack("=q", -1)
    return struct.pack("=Q", len(host)) + host + struct.pack("=Q", len(address)) + address + struct.pack("=qq", 0, 1)
