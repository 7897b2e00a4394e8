"""A channel belongs to the two processes that the control plane introduced: nobody else gets keys, KV or a crash."""

import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import psutil
import pytest

from services.common.errors import ChannelBroken, PermissionDenied
from services.common.types import Tier
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.events import ChannelOffer, ChannelRequest, KeyOrder
from services.kvtransfer.joining import Joining
from services.kvtransfer.proof import PROOF_BYTES, Introduction
from services.kvtransfer.rendezvous import SinkKeys
from services.kvtransfer.sink_channel import SinkChannel, _exchange  # pyright: ignore[reportPrivateUsage]
from services.kvtransfer.transport.base import Meeting, Transport
from services.kvtransfer.transport.gloo import open_gloo
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, SINK_BLOCKS, Pair, kv_pair, until, worker

QUICK = replace(CONFIG, operation_floor_s=0.5, connect_timeout_s=1.5)
GLOO_FRAMING_BYTES = 128
GARBAGE = (b"", b"x", bytes(4), bytes(8), b"\1" + bytes(7), b"\xff" * 8, b"GET / HTTP/1.1\r\n\r\n", b"?" * 4096)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with kv_pair() as pair:
        yield pair


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[KvTransferClient]:
    client = KvTransferClient(pair.left.info.address, "prefill-0")
    yield client
    await client.close()


REQUEST = ChannelRequest(
    sink=worker("decode-9", Tier.DECODE, FakeKv(), incarnation="i9"), source_incarnation="i1", transport="gloo"
)


async def test_rendezvous_needs_the_secret_of_the_offer(client: KvTransferClient) -> None:
    """Whoever knows a channel's name but not its secret can neither set nor read its keys."""
    events = client.open_channel(REQUEST)
    offer = await anext(events)
    assert isinstance(offer, ChannelOffer)
    for secret in (b"", b"?" * len(offer.secret), offer.secret[:-1]):
        for value in (None, b"v"):
            order = KeyOrder(channel_id=offer.channel_id, epoch=offer.epoch, secret=secret, key="k", value=value)
            with pytest.raises(PermissionDenied, match="not the secret"):
                await client.rendezvous(order, time.monotonic() + 30)
    right = KeyOrder(channel_id=offer.channel_id, epoch=offer.epoch, secret=offer.secret, key="k", value=b"mine")
    assert await client.rendezvous(right, time.monotonic() + 30) == b"mine"
    await events.aclose()


async def test_a_sink_with_a_wrong_secret_gets_no_kv(pair: Pair, client: KvTransferClient) -> None:
    """A process that reaches the data connection of somebody else's channel breaks that channel, and only it."""
    pair.left.prefill("t")
    await pair.fetch("t")
    events = client.open_channel(REQUEST)
    offer = await anext(events)
    assert isinstance(offer, ChannelOffer)
    stranger = Introduction(
        secret=b"?" * 32, channel_id=offer.channel_id, epoch=1, source_incarnation="i1", sink_incarnation="i9"
    )
    joining = Joining(stranger, CONFIG.operation_timeout_s)
    keys = SinkKeys(partial(_exchange, client, offer))
    channel = SinkChannel((offer, joining), events, keys, CONFIG, open_gloo)
    with pytest.raises(ChannelBroken, match="not its sink"):
        await channel.open()
    assert channel.channel.stats()["received_bytes"] == 0
    channel.abort(ChannelBroken("the test is over"))
    await channel.channel.wait_ended(10)
    await events.aclose()
    await until(lambda: pair.left.source.num_channels == 1)
    pair.left.prefill("t2")
    await pair.fetch("t2", blocks=SINK_BLOCKS)
    assert pair.sink.stats()["channels_opened_total"] == 1


def listening() -> set[int]:
    """Ports that this process listens on."""
    return {each.laddr.port for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN}


def intrude(sockets: list[socket.socket], control: set[int]) -> None:
    """Sends to every port but those of `control`, once there is one, what no peer would; the connections stay open."""
    ends = time.monotonic() + QUICK.connect_timeout_s / 2  # the other side may not listen yet
    while not (ports := listening() - control) and time.monotonic() < ends:
        pass
    for port in ports:
        for data in GARBAGE:
            intruder = socket.create_connection(("127.0.0.1", port))
            intruder.sendall(data)
            sockets.append(intruder)


@pytest.mark.parametrize("when", ["while a pair is built", "while it carries KV"])
async def test_a_stranger_at_the_data_port_does_no_harm(when: str, request: pytest.FixtureRequest) -> None:
    """Foreign connections to the data ports neither crash a worker nor get KV; the KV still arrives, right."""
    sockets: list[socket.socket] = []
    control: set[int] = set()

    def open_beside_strangers(meeting: Meeting, timeout_s: float) -> Transport:
        if not sockets:
            intrude(sockets, control)
        return open_gloo(meeting, timeout_s)

    request.addfinalizer(lambda: [intruder.close() for intruder in sockets])
    is_early = when == "while a pair is built"
    transports = {"gloo": open_beside_strangers if is_early else open_gloo}
    async with kv_pair(QUICK, sink_transports=transports) as pair:
        control |= listening()
        pair.left.open("t")
        if not is_early:
            await pair.sink.connect(pair.left.info)
            await until(lambda: pair.sink.stats()["channels"] == 1)
            intrude(sockets, control)
        pair.left.compute("t", 0, NUM_TOKENS)
        pair.left.finish("t")
        await pair.fetch("t")
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
        assert sockets
        # Who takes the source's place may get the sink's first message, its proof, in gloo's framing.
        assert max(len(_received(intruder)) for intruder in sockets) <= PROOF_BYTES + GLOO_FRAMING_BYTES


def _received(intruder: socket.socket) -> bytes:
    intruder.settimeout(0.0)
    try:
        return intruder.recv(2**20)
    except OSError:
        return b""
