"""A prefill and a decode worker whose every link leads through a proxy: both control links and the data link.

The control link is the address that a worker tells others. The data link is found by gloo through the rendezvous: the
source's transport is given keys in which every address is that of a proxy. Both sides have hosts of their own on the
loopback, by which gloo decides who connects.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections.abc import AsyncIterator, Callable

from services.common.types import Tier
from services.kvtransfer.rendezvous import Keys
from services.kvtransfer.transport.base import Meeting, OpenTransport, Transport
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_engine import FakeEngine
from tests.harness.tcp_proxy import TcpProxy, tcp_proxy
from tests.harness.tiers import TierServer, free_port, running

SOURCE_HOST = "127.0.0.2"
SINK_HOST = "127.0.0.3"
WAIT_S = 30.0

Hurt = Callable[[TcpProxy], None]


class Link:
    """Proxies that are hurt alike, those of later connections included."""

    def __init__(self) -> None:
        self._proxies: list[TcpProxy] = []
        self._hurt: Hurt | None = None
        self._stack = contextlib.AsyncExitStack()

    async def proxy(self, port: int, host: str = "127.0.0.1") -> TcpProxy:
        """A proxy in front of a port, on the host of that port."""
        proxy = await self._stack.enter_async_context(tcp_proxy(port, host=host, target_host=host))
        if self._hurt is not None:
            self._hurt(proxy)
        self._proxies.append(proxy)
        return proxy

    def hurt(self, how: Hurt) -> None:
        """From now on, until `heal`."""
        self._hurt = how
        for proxy in self._proxies:
            how(proxy)

    async def heal(self) -> None:
        """As good links again."""
        self._hurt = None
        for proxy in self._proxies:
            await proxy.heal()

    @property
    def passed_bytes(self) -> int:
        """Bytes that went on, both directions together."""
        return sum(proxy.up.passed_bytes + proxy.down.passed_bytes for proxy in self._proxies)

    async def close(self) -> None:
        """Ends the proxies."""
        await self._stack.aclose()


class ProxiedKeys:
    """Keys in which gloo finds proxies in the place of addresses. Thread: the channel's."""

    def __init__(self, keys: Keys, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self._keys = keys
        self._link = link
        self._loop = loop
        self._own: dict[str, bytes] = {}
        self._seen: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        self._own[key] = value
        self._keys.set(key, self._through_proxy(value), timeout_s)

    def get(self, key: str, timeout_s: float) -> bytes:
        if key in self._own:
            return self._own[key]
        if key not in self._seen:
            self._seen[key] = self._through_proxy(self._keys.get(key, timeout_s))
        return self._seen[key]

    def _through_proxy(self, value: bytes) -> bytes:
        (host_bytes,) = struct.unpack_from("=Q", value)
        place = 8 + host_bytes + 8 + 2
        (port,) = struct.unpack_from(">H", value, place)
        host = socket.inet_ntoa(value[place + 2 : place + 6])
        proxy = asyncio.run_coroutine_threadsafe(self._link.proxy(port, host), self._loop).result(WAIT_S)
        return value[:place] + struct.pack(">H", proxy.port) + value[place + 2 :]


def through(open_transport: OpenTransport, link: Link) -> OpenTransport:
    """The source's way to build pairs whose connection leads through proxies of this link."""
    loop = asyncio.get_running_loop()

    def build(meeting: Meeting, timeout_s: float) -> Transport:
        return open_transport(dataclasses.replace(meeting, keys=ProxiedKeys(meeting.keys, link, loop)), timeout_s)

    return build


@dataclasses.dataclass
class HurtPair:
    """The two workers and their links."""

    prefill: TierServer
    decode: TierServer
    prefill_control: Link
    decode_control: Link
    data: Link


@contextlib.asynccontextmanager
async def hurt_pair(make_engine: Callable[[], FakeEngine], **settings: object) -> AsyncIterator[HurtPair]:
    """Starts both; their links are good until they are hurt."""
    links = [Link(), Link(), Link()]
    prefill = TierServer(Tier.PREFILL, make_engine(), kv_host=SOURCE_HOST, **settings)
    decode = TierServer(Tier.DECODE, make_engine(), kv_host=SINK_HOST, **settings)
    prefill.transports = {"gloo": through(open_gloo, links[2])}
    try:
        for server, link in ((prefill, links[0]), (decode, links[1])):
            server.port = free_port()
            server.advertised = (await link.proxy(server.port)).address
        async with running(prefill, decode):
            yield HurtPair(prefill, decode, *links)
    finally:
        for link in links:
            await link.close()
