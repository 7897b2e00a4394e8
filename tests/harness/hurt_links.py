"""A prefill and a decode worker whose every link leads through a proxy: both control links and the data link.

The control link is the address that a worker tells others. The data link is found by gloo through the rendezvous, in
which every address is that of a proxy (`proxied_keys.py`).
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from services.common.types import Tier
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_engine import FakeEngine
from tests.harness.link import Link
from tests.harness.proxied_keys import PortOf, through
from tests.harness.tiers import TierServer, free_port, running

SOURCE_HOST = "127.0.0.2"
SINK_HOST = "127.0.0.3"
WAIT_S = 30.0


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
    settings = {"kv_operation_floor_s": TransferConfig().operation_floor_s, **settings}
    prefill = TierServer(Tier.PREFILL, make_engine(), kv_host=SOURCE_HOST, **settings)
    decode = TierServer(Tier.DECODE, make_engine(), kv_host=SINK_HOST, **settings)
    prefill.transports = {"gloo": through(open_gloo, _on_this_loop(links[2]))}
    try:
        for server, link in ((prefill, links[0]), (decode, links[1])):
            server.port = free_port()
            server.advertised = (await link.proxy(server.port)).address
        async with running(prefill, decode):
            yield HurtPair(prefill, decode, *links)
    finally:
        for link in links:
            await link.close()


def _on_this_loop(link: Link) -> PortOf:
    """Proxies of a link, for the threads of channels."""
    loop = asyncio.get_running_loop()

    def port_of(host: str, port: int) -> int:
        return asyncio.run_coroutine_threadsafe(link.proxy(port, host), loop).result(WAIT_S).port

    return port_of
