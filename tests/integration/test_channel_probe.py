"""Channels that are quiet are tried out, on demand and by themselves."""

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from services.common.errors import BatonError, DeadlineExceeded
from services.common.types import Tier
from services.kvtransfer.peer import Peer
from tests.harness.tiers import TierServer, both_legs, running, until, work


def peer_of(decode: TierServer) -> Peer:
    """The one peer of a decode worker."""
    (peer,) = decode.tier._sink.peers.values()
    return peer


def pair(**settings: Any) -> tuple[TierServer, TierServer]:
    """A prefill worker, and a decode worker of which the test opens the channel."""
    return TierServer(Tier.PREFILL, **settings), TierServer(Tier.DECODE, **settings)


async def test_a_probe_carries_bytes_over_the_open_channel() -> None:
    """One message more has come on the very same channel, and KV still travels on it."""
    prefill, decode = pair()
    async with running(prefill, decode):
        await decode.tier._sink.connect(prefill.info)
        channel = peer_of(decode).channel
        assert channel is not None
        before = channel.sequence
        await asyncio.gather(*(peer_of(decode).probe(time.monotonic() + 30) for _ in range(3)))
        assert channel.sequence == before + 3
        await both_legs(prefill, decode, work([1, 2, 3]), "t-1")
        assert peer_of(decode).channel is channel


async def test_probes_and_handoffs_share_a_channel() -> None:
    """Under traffic both arrive whole and in order."""
    prefill, decode = pair()
    async with running(prefill, decode):
        await decode.tier._sink.connect(prefill.info)
        peer = peer_of(decode)

        async def probes() -> None:
            for _ in range(20):
                await peer.probe(time.monotonic() + 30)

        handoffs = (both_legs(prefill, decode, work(range(place, place + 20)), f"t-{place}") for place in range(4))
        await asyncio.gather(probes(), *handoffs)
        stats = decode.tier.load().counters
        assert stats["sink_channels_opened_total"] == 1
        assert stats["sink_checksum_failures_total"] == 0


async def test_a_quiet_channel_is_tried_out_by_itself() -> None:
    """Nobody asks, yet messages come."""
    prefill, decode = pair(kv_probe_interval_s=0.05)
    async with running(prefill, decode):
        await decode.tier._sink.connect(prefill.info)
        channel = peer_of(decode).channel
        assert channel is not None
        await until(lambda: channel.sequence >= 4)
        assert peer_of(decode).channel is channel


async def test_a_channel_that_carries_nothing_is_rebuilt_before_a_request_meets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe that does not come breaks the channel: it is not reported as proven, and the next one is built."""
    prefill, decode = pair(kv_probe_interval_s=0.05)
    async with running(prefill, decode):
        sink = decode.tier._sink
        sink._config = dataclasses.replace(sink._config, operation_floor_s=1.0)
        await sink.connect(prefill.info)
        broken = peer_of(decode).channel
        assert broken is not None
        (source_channel,) = prefill.tier._worker.source.channels.all()
        opened = decode.tier.load().counters["sink_channels_opened_total"]
        monkeypatch.setattr(source_channel, "probe", lambda order: None)  # as if it had been lost on the way
        await until(lambda: not broken.is_ready)
        await until(lambda: decode.tier._sink.proven == (prefill.info.incarnation,))
        assert peer_of(decode).channel is not broken
        assert decode.tier.load().counters["sink_channels_opened_total"] > opened


async def test_a_probe_that_is_late_behind_kv_is_no_failure() -> None:
    """Where KV came meanwhile the link is good, and the channel stays."""
    prefill, decode = pair(kv_probe_interval_s=0.05)
    async with running(prefill, decode):
        sink = decode.tier._sink
        sink._config = dataclasses.replace(sink._config, operation_floor_s=2.0)
        await sink.connect(prefill.info)
        channel = peer_of(decode).channel
        (source_channel,) = prefill.tier._worker.source.channels.all()
        lost = list[object]()
        source_channel.probe = lost.append
        await until(lambda: bool(lost))
        await both_legs(prefill, decode, work([1, 2, 3]), "t-1")
        await until(lambda: len(lost) > 1)  # the first one's time is over
        assert peer_of(decode).channel is channel


async def test_a_probe_ends_by_its_deadline() -> None:
    """With a typed error; the channel is left as it is."""
    prefill, decode = pair()
    async with running(prefill, decode):
        await decode.tier._sink.connect(prefill.info)
        (source_channel,) = prefill.tier._worker.source.channels.all()
        source_channel.probe = lambda order: None
        with pytest.raises(DeadlineExceeded, match="may be dead"):
            await peer_of(decode).probe(time.monotonic() + 0.2)
        assert peer_of(decode).is_ready


async def test_a_probe_of_a_source_that_is_gone_fails() -> None:
    """Typed, and long before the deadline."""
    prefill, decode = pair()
    async with running(decode):
        await prefill.start()
        await decode.tier._sink.connect(prefill.info)
        peer = peer_of(decode)
        await prefill.stop()
        await until(lambda: not peer.is_ready)
        async with asyncio.timeout(30):
            with pytest.raises(BatonError):
                await peer.probe(time.monotonic() + 60)
