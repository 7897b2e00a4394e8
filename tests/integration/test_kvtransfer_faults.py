"""What a bad link does to bytes, and what the sink makes of it: never wrong KV, always a typed error or a refetch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from services.common.errors import ChannelBroken, KvCorrupt, PeerIncompatible, PeerUnreachable
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.transport.gloo import open_gloo
from services.kvtransfer.transport.memory import MemoryExchange
from tests.harness.fake_kv import FakeKv, layout_with
from tests.harness.faulty_transport import Fault, FaultPlan, faulty
from tests.harness.kv_pair import CONFIG, NUM_TOKENS, SINK_BLOCKS, Pair, kv_pair, until

# For messages that never come, and no shorter: a machine that stands still for a moment must not look like a bad link.
QUICK = replace(CONFIG, operation_floor_s=2.0)


@asynccontextmanager
async def faulty_pair(transport: str, plan: FaultPlan, config: TransferConfig = CONFIG) -> AsyncIterator[Pair]:
    """A pair whose source hurts what it sends."""
    layout = layout_with(transports=(transport,))
    open_transport = open_gloo if transport == "gloo" else MemoryExchange().open
    async with kv_pair(
        config,
        source_kv=FakeKv(layout),
        sink_kv=FakeKv(layout),
        source_transports={transport: faulty(open_transport, plan)},
        sink_transports={transport: open_transport},
    ) as pair:
        yield pair


def limits(fault: Fault) -> TransferConfig:
    """Short where only the operation's limit shows the fault."""
    return QUICK if fault in (Fault.DROP, Fault.DUPLICATE) else CONFIG


@pytest.mark.parametrize("transport", ["gloo", "memory"])
@pytest.mark.parametrize(
    "fault",
    [Fault.CORRUPT, Fault.ZERO, Fault.TRUNCATE, Fault.DUPLICATE, Fault.DROP, Fault.BREAK],
    ids=lambda f: f.value,
)
async def test_hurt_message_is_fetched_again(transport: str, fault: Fault) -> None:
    """One fault in the second KV message: the KV still arrives right, over a new channel, and is counted."""
    async with faulty_pair(transport, FaultPlan({2: fault}), limits(fault)) as pair:
        pair.left.prefill("t")
        await pair.fetch("t")
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
        stats = pair.sink.stats()
        assert stats["refetches_total"] == 1
        assert stats["channels_opened_total"] == 2
        # What was verified before the fault is not sent again.
        assert pair.kv.writes[0] == (0, 4)
        assert all(start >= 4 for start, _ in pair.kv.writes[1:])


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.ZERO, Fault.TRUNCATE], ids=lambda f: f.value)
async def test_fault_that_stays_is_a_typed_error(fault: Fault) -> None:
    """A link that corrupts every message ends the fetch with KvCorrupt, and no hurt byte was written."""
    async with faulty_pair("gloo", FaultPlan(always=fault)) as pair:
        pair.left.prefill("t")
        with pytest.raises(KvCorrupt):
            await pair.fetch("t", timeout_s=60)
        assert pair.kv.writes == []
        assert pair.kv.is_blank(SINK_BLOCKS, 0, NUM_TOKENS)


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.ZERO], ids=lambda f: f.value)
async def test_without_checksums_garbage_arrives(fault: Fault) -> None:
    """The negative control: with checksums off the same fault goes unnoticed and the blocks are wrong."""
    config = replace(CONFIG, checksum=False)
    async with faulty_pair("gloo", FaultPlan({2: fault}), config) as pair:
        pair.left.prefill("t")
        await pair.fetch("t")
        assert pair.kv.holds(SINK_BLOCKS, 0, 4)
        assert not pair.kv.holds(SINK_BLOCKS, 4, 8)
        assert pair.sink.stats()["refetches_total"] == 0


async def test_sink_demands_checksums_of_a_source_that_sends_none() -> None:
    """Switched off at the source alone, the sink refuses and says so."""
    off = replace(CONFIG, checksum=False)
    async with kv_pair(off, sink_config=CONFIG) as pair:
        pair.left.prefill("t")
        with pytest.raises(KvCorrupt, match="without a checksum"):
            await pair.fetch("t")
        assert pair.kv.writes == []


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.ZERO, Fault.DROP], ids=lambda f: f.value)
async def test_channel_whose_probe_fails_is_rebuilt(fault: Fault) -> None:
    """A channel that cannot carry the probe never carries KV; the next epoch does."""
    async with faulty_pair("gloo", FaultPlan({0: fault}), limits(fault)) as pair:
        with pytest.raises(ChannelBroken):
            await pair.sink.connect(pair.left.info)
        await until(lambda: pair.sink.is_connected("prefill-0", "i1"))
        pair.left.prefill("t")
        await pair.fetch("t")
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
        stats = pair.sink.stats()
        assert (stats["connect_failures_total"], stats["channels_opened_total"]) == (1, 1)


async def test_broken_channel_fails_only_what_is_on_it() -> None:
    """Fetches that share a channel with a corrupt message are fetched again, too, and all arrive."""
    async with faulty_pair("gloo", FaultPlan({3: Fault.CORRUPT})) as pair:
        count, tokens = 4, 8
        for i in range(count):
            blocks = (2 * i, 2 * i + 1)
            pair.left.kv.fill(blocks, 0, tokens, salt=i)
            pair.left.open(f"t{i}", tokens, blocks)
            pair.left.finish(f"t{i}")
        fetches = (pair.fetch(f"t{i}", blocks=(40 + 2 * i, 41 + 2 * i), num_tokens=tokens) for i in range(count))
        await asyncio.gather(*fetches)
        for i in range(count):
            assert pair.kv.holds((40 + 2 * i, 41 + 2 * i), 0, tokens, salt=i)


async def test_silent_link_breaks_within_its_time_limit() -> None:
    """A message that is announced and never sent is noticed by the operation's own limit, not by the deadline."""
    plan = FaultPlan({1: Fault.DROP, 2: Fault.DROP, 3: Fault.DROP})
    async with faulty_pair("gloo", plan, replace(CONFIG, operation_floor_s=0.5)) as pair:
        pair.left.prefill("t")
        async with asyncio.timeout(30):
            await pair.fetch("t", timeout_s=100)
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)


async def test_link_that_stays_silent_is_given_up_long_before_the_deadline() -> None:
    """A fetch whose channel broke waits for the next one only a moment; then another worker may serve."""
    plan = FaultPlan()
    async with faulty_pair("gloo", plan, replace(QUICK, refetch_s=0.2)) as pair:
        await pair.sink.connect(pair.left.info)
        plan.faults = {1: Fault.DROP, 0: Fault.DROP}  # a message of KV, then the probe of the next channel
        pair.left.prefill("t")
        async with asyncio.timeout(20):
            with pytest.raises(PeerUnreachable, match="takes too long"):
                await pair.fetch("t", timeout_s=60)
        assert pair.kv.writes == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_fingerprint": "other"}, "model_fingerprint differs"),
        ({"num_layers": 3}, "num_layers differs"),
        ({"num_kv_heads": 1}, "num_kv_heads differs"),
        ({"transports": ("memory",)}, "no common transport"),
    ],
)
async def test_incompatible_source_is_refused_for_good(changes: dict[str, object], said: str) -> None:
    """A pair that does not fit is refused with the reason, before any KV moves, and not tried again."""
    exchange = MemoryExchange()
    transports = {"gloo": open_gloo, "memory": exchange.open}
    sink_kv = FakeKv(layout_with(**changes))
    async with kv_pair(sink_kv=sink_kv, sink_transports=transports) as pair:
        with pytest.raises(PeerIncompatible, match=said):
            await pair.sink.connect(pair.left.info)
        await until(lambda: pair.sink.stats()["peers"] == 0)
        assert pair.left.source.num_channels == 0


async def test_prompt_of_another_length_is_refused() -> None:
    """A ticket for another prompt than the sink reserved blocks for never reaches the blocks."""
    async with kv_pair() as pair:
        pair.left.prefill("t")
        with pytest.raises(Exception, match="different prompts"):
            await pair.fetch("t", num_tokens=NUM_TOKENS - 1)


async def test_source_messages_too_large_for_the_sink_are_refused() -> None:
    """A sink never receives more than it is willing to stage."""
    small = replace(CONFIG, max_message_bytes=64, staging_bytes=128)
    async with kv_pair(sink_config=small) as pair:
        with pytest.raises(PeerIncompatible, match="staging_bytes"):
            await pair.sink.connect(pair.left.info)
