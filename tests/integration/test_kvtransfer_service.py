"""What the transfer service answers to calls that no proper sink makes, and how it bounds them."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.common.errors import ChannelBroken, InvalidRequest, Overloaded, PeerIncompatible, PeerUnreachable
from services.common.types import Tier
from services.kvtransfer.client import KvTransferClient
from services.kvtransfer.events import ChannelOffer, ChannelRequest, FetchOrder, KeyOrder
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, Pair, kv_pair, until, worker


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with kv_pair(replace(CONFIG, max_channels=2)) as pair:
        yield pair


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[KvTransferClient]:
    client = KvTransferClient(pair.left.info.address, "prefill-0")
    yield client
    await client.close()


def request(
    name: str = "decode-5", *, incarnation: str = "i1", source: str = "i1", transport: str = "gloo"
) -> ChannelRequest:
    sink = worker(name, Tier.DECODE, FakeKv(), incarnation=incarnation)
    return ChannelRequest(sink=sink, source_incarnation=source, transport=transport)


async def test_call_for_another_process_is_refused(client: KvTransferClient) -> None:
    """The sink learns that the worker was restarted, and as whom."""
    with pytest.raises(PeerUnreachable, match="restarted") as caught:
        await anext(client.open_channel(request(source="i0")))
    assert caught.value.details["incarnation"] == "i1"


async def test_unknown_transport_is_refused(client: KvTransferClient) -> None:
    """The reason names what is asked for and what there is."""
    with pytest.raises(PeerIncompatible, match="carrier-pigeon is not one of gloo"):
        await anext(client.open_channel(request(transport="carrier-pigeon")))


async def test_channels_are_bounded(pair: Pair, client: KvTransferClient) -> None:
    """One sink too many is shed with a hint to come back; those that are open stay."""
    opened = [client.open_channel(request(f"decode-{number}")) for number in (1, 2)]
    for events in opened:
        await anext(events)
    with pytest.raises(Overloaded, match="max_channels") as caught:
        await anext(client.open_channel(request("decode-3")))
    assert caught.value.retry_after_s == 1.0
    assert pair.left.source.num_channels == 2
    for events in opened:
        await events.aclose()
    await until(lambda: pair.left.source.num_channels == 0)


async def test_new_incarnation_of_a_sink_replaces_its_channel(pair: Pair, client: KvTransferClient) -> None:
    """A restarted sink gets a channel at once, at epoch 1; the one of its earlier process ends."""
    old = client.open_channel(request())
    await anext(old)
    fresh = client.open_channel(request(incarnation="i2"))
    offer = await anext(fresh)
    assert isinstance(offer, ChannelOffer)
    assert offer.epoch == 1
    with pytest.raises(ChannelBroken):
        async with asyncio.timeout(30):
            await anext(old)
    assert pair.left.source.num_channels == 1
    await fresh.aclose()


async def test_wrong_epoch_is_refused(pair: Pair, client: KvTransferClient) -> None:
    """A fetch or a key of another epoch never reaches the channel."""
    events = client.open_channel(request())
    offer = await anext(events)
    assert isinstance(offer, ChannelOffer)
    later = FetchOrder(
        request_id="r", fetch_id="f", ticket_id="t", channel_id=offer.channel_id, epoch=offer.epoch + 1, start_token=0
    )
    with pytest.raises(ChannelBroken):
        await client.fetch(later, time.monotonic() + 30)
    key = KeyOrder(channel_id=offer.channel_id, epoch=offer.epoch + 1, secret=offer.secret, key="k", value=b"v")
    with pytest.raises(ChannelBroken):
        await client.rendezvous(key, time.monotonic() + 30)
    await events.aclose()


async def test_start_beyond_the_prompt_is_refused(pair: Pair, client: KvTransferClient) -> None:
    """The field is named."""
    pair.left.prefill("t")
    events = client.open_channel(request())
    offer = await anext(events)
    assert isinstance(offer, ChannelOffer)
    order = FetchOrder(
        request_id="request-t",
        fetch_id="f",
        ticket_id="t",
        channel_id=offer.channel_id,
        epoch=1,
        start_token=NUM_TOKENS + 1,
    )
    with pytest.raises(InvalidRequest, match="start_token"):
        await client.fetch(order, time.monotonic() + 30)
    await events.aclose()


@pytest.mark.parametrize("name", ["request_id", "fetch_id", "ticket_id", "channel_id"])
async def test_missing_id_is_refused(client: KvTransferClient, name: str) -> None:
    """Every id is needed; the answer says which one is missing."""
    order = FetchOrder(request_id="r", fetch_id="f", ticket_id="t", channel_id="c", epoch=1, start_token=0)
    with pytest.raises(InvalidRequest, match=f"{name} is missing"):
        await client.fetch(replace(order, **{name: ""}), time.monotonic() + 30)


async def test_release_of_an_unknown_ticket_is_no_error(pair: Pair, client: KvTransferClient) -> None:
    """A release may come twice, late, or before the prefill."""
    assert not (await client.release("nobody-knows", "", 30)).was_open
    pair.left.prefill("t")
    assert (await client.release("t", "", 30)).was_open
    assert not (await client.release("t", "", 30)).was_open
    assert pair.left.released == ["t"]
