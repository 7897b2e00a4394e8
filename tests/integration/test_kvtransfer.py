"""KV goes from source to sink: over gloo and in memory, as chunks are computed, whatever the layouts."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.kvtransfer.transport.available import AVAILABLE
from services.kvtransfer.transport.memory import MemoryExchange
from tests.harness.fake_kv import FakeKv, layout_with
from tests.harness.kv_pair import (
    CONFIG,
    FIRST_TOKENS,
    NUM_TOKENS,
    SINK_BLOCKS,
    STAGES,
    Pair,
    kv_pair,
    until,
)


@pytest.fixture(params=["gloo", "memory"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    layout = layout_with(transports=(request.param,))
    transports = {**AVAILABLE, "memory": MemoryExchange().open}
    async with kv_pair(
        source_kv=FakeKv(layout), sink_kv=FakeKv(layout), source_transports=transports, sink_transports=transports
    ) as pair:
        yield pair


async def test_finished_prefill_arrives_whole(pair: Pair) -> None:
    """What the prefill computed is in the sink's blocks, with first tokens, stage times and counts."""
    pair.left.prefill("t")
    fetched = await pair.fetch("t")
    assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)
    assert fetched.first_tokens == FIRST_TOKENS
    assert (fetched.stages.queue_ns, fetched.stages.prefill_ns) == (STAGES.queue_ns, STAGES.prefill_ns)
    assert fetched.cached_tokens == 3
    assert fetched.received_bytes == NUM_TOKENS * pair.kv.layout.token_elements * 4
    assert fetched.handoff_ns > 0


async def test_chunks_arrive_while_the_prefill_goes_on(pair: Pair) -> None:
    """Each chunk lands before the next is computed; the fetch ends only when the prefill has."""
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
    pair.left.open("t")
    for start, end in ((0, 5), (5, 16), (16, NUM_TOKENS)):
        pair.left.compute("t", start, end)
        await until(lambda end=end: bool(pair.kv.writes) and pair.kv.writes[-1][1] == end)
        assert pair.kv.holds(SINK_BLOCKS, 0, end)
        assert not fetch.done()
    pair.left.finish("t")
    await fetch


async def test_fetch_before_open_holds_no_staging(pair: Pair) -> None:
    """A fetch whose prefill still queues costs no staging on either side beyond what the probe took."""
    await pair.sink.connect(pair.left.info)
    fetch = asyncio.create_task(pair.fetch("t"))
    await until(lambda: pair.left.source.stats()["fetches_waiting"] == 1)
    assert pair.left.source.stats()["staging_taken"] == 0
    assert pair.sink.stats()["staging_taken"] == 0
    pair.left.prefill("t")
    await fetch


async def test_prefix_of_the_sink_is_not_sent(pair: Pair) -> None:
    """Only positions from start_token on travel and are written."""
    pair.left.prefill("t")
    fetched = await pair.fetch("t", start_token=9)
    assert pair.kv.holds(SINK_BLOCKS, 9, NUM_TOKENS)
    assert pair.kv.is_blank(SINK_BLOCKS, 0, 9)
    assert fetched.received_bytes == (NUM_TOKENS - 9) * pair.kv.layout.token_elements * 4


async def test_whole_prompt_in_the_sinks_cache_moves_no_bytes(pair: Pair) -> None:
    """With everything cached the fetch still brings first tokens, and no message."""
    pair.left.prefill("t")
    fetched = await pair.fetch("t", start_token=NUM_TOKENS)
    assert fetched.received_bytes == 0
    assert fetched.first_tokens == FIRST_TOKENS
    assert pair.kv.writes == []


async def test_ticket_is_given_back_after_the_fetch(pair: Pair) -> None:
    """The sink releases the ticket; on_released comes exactly once and nothing of it is left."""
    pair.left.prefill("t")
    await pair.fetch("t")
    await until(lambda: pair.left.released == ["t"])
    assert pair.left.source.num_tickets == 0
    pair.left.source.release("t")
    await asyncio.sleep(0)
    assert pair.left.released == ["t"]


async def test_concurrent_fetches_do_not_mix(pair: Pair) -> None:
    """Eight prompts share the channel; each lands in its own blocks with its own content."""
    count, tokens = 8, 8
    source_blocks = [(2 * i, 2 * i + 1) for i in range(count)]
    sink_blocks = [(40 - 2 * i, 41 - 2 * i) for i in range(count)]
    for i, blocks in enumerate(source_blocks):
        pair.left.kv.fill(blocks, 0, tokens, salt=i)
        pair.left.open(f"t{i}", tokens, blocks)
        pair.left.finish(f"t{i}")
    fetches = (pair.fetch(f"t{i}", blocks=blocks, num_tokens=tokens) for i, blocks in enumerate(sink_blocks))
    await asyncio.gather(*fetches)
    assert all(pair.kv.holds(blocks, 0, tokens, salt=i) for i, blocks in enumerate(sink_blocks))
    assert pair.sink.stats()["channels_opened_total"] == 1


async def test_long_prompt_does_not_hold_up_a_short_one(pair: Pair) -> None:
    """Messages of several fetches take turns: a one-message fetch ends long before the last of a long one."""
    await pair.sink.connect(pair.left.info)
    may_read = threading.Event()
    read = pair.left.kv.read

    def read_when_told(*args: object) -> None:
        assert may_read.wait(30)
        read(*args)  # type: ignore[arg-type]

    pair.left.kv.read = read_when_told  # type: ignore[method-assign,assignment]
    long_blocks, long_tokens = tuple(range(20, 45)), 100
    pair.left.open("long", long_tokens, long_blocks)
    pair.left.finish("long")
    long_fetch = asyncio.create_task(pair.fetch("long", blocks=long_blocks, num_tokens=long_tokens))
    await until(lambda: pair.left.source.stats()["ticket_readers"] > 0)
    pair.left.open("short", 4, (1,))
    pair.left.finish("short")
    short_fetch = asyncio.create_task(pair.fetch("short", blocks=(1,), num_tokens=4))
    await until(lambda: pair.left.source.stats()["fetches"] == 2)
    may_read.set()
    await asyncio.gather(long_fetch, short_fetch)
    # 25 messages of the long one and one of the short one: the latter was among the first that were read.
    assert (0, 4) in pair.left.kv.reads[:5][1:]


@pytest.mark.parametrize(
    "changes",
    [{"block_size": 16}, {"block_size": 3}, {"dtype": "bfloat16"}, {"dtype": "float16", "block_size": 7}],
    ids=str,
)
async def test_layouts_are_converted(changes: dict[str, object]) -> None:
    """Block size and dtype may differ: content arrives equal, position by position."""
    async with kv_pair(sink_kv=FakeKv(layout_with(**changes), num_blocks=32)) as pair:
        blocks = tuple(range(30, 20, -1))
        pair.left.prefill("t")
        await pair.fetch("t", blocks=blocks)
        assert pair.kv.holds(blocks, 0, NUM_TOKENS)


async def test_token_larger_than_the_message_limit_still_travels() -> None:
    """A limit below one token's KV is raised to it instead of failing."""
    config = replace(CONFIG, max_message_bytes=8, staging_bytes=1024)
    async with kv_pair(config) as pair:
        pair.left.prefill("t")
        await pair.fetch("t")
        assert pair.kv.holds(SINK_BLOCKS, 0, NUM_TOKENS)


async def test_second_connect_uses_the_same_channel(pair: Pair) -> None:
    """Connecting is idempotent, also when several ask at once."""
    await asyncio.gather(*(pair.sink.connect(pair.left.info) for _ in range(5)))
    await pair.sink.connect(pair.left.info)
    assert pair.sink.is_connected("prefill-0", "i1")
    assert pair.left.source.stats()["channels_opened_total"] == 1
