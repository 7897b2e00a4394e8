"""Prefill and decode together, on real sockets and gloo channels, over the hand-computable engine."""

import asyncio
import contextlib
import time

import pytest

from services.common.errors import BatonError, DeadlineExceeded, KvPoolFull, TicketUnknown
from services.common.sampling import SamplingParams
from services.common.types import FinishReason, Tier
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.tiers import GREEDY, TierServer, at_rest, both_legs, collect, ids, running, work

PROMPT = list(range(10, 40))


def pair(prefill_block: int = 4, decode_block: int = 4, **limits: int) -> tuple[TierServer, TierServer]:
    """A prefill and a decode worker with block sizes of their own."""
    return (
        TierServer(Tier.PREFILL, FakeEngine(FakeLimits(**limits), block_size=prefill_block)),
        TierServer(Tier.DECODE, FakeEngine(FakeLimits(**limits), block_size=decode_block)),
    )


@pytest.mark.parametrize(("prefill_block", "decode_block"), [(4, 4), (8, 4), (4, 16), (16, 8)])
async def test_split_gives_the_same_tokens(prefill_block: int, decode_block: int):
    """Whatever the block sizes, the split gives the hand-computed tokens and decode prefills nothing."""
    prefill, decode = pair(prefill_block, decode_block)
    async with running(prefill, decode):
        result, tokens, last = await both_legs(prefill, decode, work(PROMPT), "t1")
        assert ids(tokens[0]) == expected_tokens(PROMPT, GREEDY, 8)
        assert result.first_tokens[0].tokens[0] == tokens[0][0]
        assert last.summary.prefilled_tokens == 0
        assert last.summary.received_bytes > 0
        assert last.summary.stages.handoff_ns > 0
        assert decode.tier.load().counters["prefilled_tokens"] == 0
        await at_rest(prefill, decode)


async def test_choices_are_forked_from_one_handoff():
    """With n = 4 the prompt's KV is sent once and every choice goes its own way."""
    sampling = SamplingParams(seed=9, n=4, max_tokens=6)
    prefill, decode = pair()
    async with running(prefill, decode):
        _, tokens, last = await both_legs(prefill, decode, work(PROMPT, sampling), "t1")
        for choice in range(4):
            assert ids(tokens[choice]) == expected_tokens(PROMPT, sampling, 6, choice=choice)
        assert last.summary.usage.completion_tokens == 24
        await at_rest(prefill, decode)


async def test_decode_prefix_is_not_sent():
    """Blocks that decode has cached stay where they are: the second handoff sends less, and the tokens are right."""
    prefill, decode = pair()
    async with running(prefill, decode):
        _, _, first = await both_legs(prefill, decode, work(PROMPT), "t1")
        _, tokens, second = await both_legs(prefill, decode, work(PROMPT), "t2")
        assert second.summary.received_bytes < first.summary.received_bytes
        assert ids(tokens[0]) == expected_tokens(PROMPT, GREEDY, 8)


async def test_first_token_that_ends_everything():
    """Where the first token is the last, decode says so, computes nothing and holds nothing."""
    prefill, decode = pair()
    sampling = SamplingParams(temperature=0.0, stop_token_ids=tuple(expected_tokens(PROMPT, GREEDY, 1)))
    async with running(prefill, decode):
        _, tokens, last = await both_legs(prefill, decode, work(PROMPT, sampling), "t1")
        assert len(tokens[0]) == 1
        assert last.choices[0].finish is FinishReason.STOP
        assert decode.engine.steps == 0
        await at_rest(prefill, decode)


async def test_many_mixed_requests():
    """Forty requests of mixed lengths, sampled and greedy, eight at a time, each token for token as computed alone."""
    prefill, decode = pair(num_blocks=96, max_num_batched_tokens=16)
    gate = asyncio.Semaphore(8)

    async def one(i: int) -> None:
        prompt = [(i * 7 + j) % 90 for j in range(1 + (i * 13) % 70)]
        sampling = SamplingParams(seed=i, temperature=float(i % 2), max_tokens=1 + i % 9, n=1 + i % 2)
        async with gate:
            _, tokens, _ = await both_legs(prefill, decode, work(prompt, sampling), f"t{i}")
        for choice in range(sampling.n):
            assert ids(tokens[choice]) == expected_tokens(prompt, sampling, sampling.max_tokens, choice=choice)

    async with running(prefill, decode):
        await asyncio.gather(*(one(i) for i in range(40)))
        assert decode.tier.load().counters["prefilled_tokens"] == 0 or decode.tier.load().counters["preemptions"]
        await at_rest(prefill, decode)


async def test_cancel_while_waiting_for_the_prefill():
    """When the decode leg is cancelled before its KV comes, its blocks are free at once."""
    prefill, decode = pair()
    async with running(prefill, decode):
        request = work(PROMPT, handoff=prefill.handoff("never"))
        call = asyncio.create_task(collect(decode.decode.decode(request)))
        await decode.settled(lambda: decode.tier.load().waiting_requests == 1)
        assert decode.blocks_held == 0
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await at_rest(prefill, decode)


async def test_cancel_mid_handoff():
    """A decode leg that is cancelled between chunks leaves no block held on either side, and the next one works."""
    prefill, decode = pair(max_num_batched_tokens=8)
    async with running(prefill, decode):
        await both_legs(prefill, decode, work([1, 2, 3]), "warm")
        while prefill.engine.entered.acquire(blocking=False):
            pass
        prefill.engine.gate.clear()
        leg = asyncio.create_task(prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1")))
        call = asyncio.create_task(
            collect(decode.decode.decode(work(PROMPT, request_id="r1", handoff=prefill.handoff("t1"))))
        )
        await decode.settled(lambda: decode.tier.load().handoffs == 1)
        call.cancel()
        leg.cancel()
        await asyncio.gather(call, leg, return_exceptions=True)
        prefill.engine.gate.set()
        await at_rest(prefill, decode)
        _, tokens, _ = await both_legs(prefill, decode, work(PROMPT), "t2")
        assert ids(tokens[0]) == expected_tokens(PROMPT, GREEDY, 8)


async def test_deadline_in_handoff():
    """A decode leg whose prefill never comes ends with DEADLINE_EXCEEDED in time."""
    prefill, decode = pair()
    async with running(prefill, decode):
        request = work(PROMPT, handoff=prefill.handoff("never"), deadline=time.monotonic() + 0.7)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await collect(decode.decode.decode(request))
        assert time.monotonic() - started < 10
        await at_rest(prefill, decode)


async def test_failed_prefill_fails_the_fetch_at_once():
    """When the prompt fails, the decode leg learns it and does not wait for its deadline."""
    prefill, decode = pair()
    prefill.engine.poison = PROMPT[-1]
    async with running(prefill, decode):
        leg = prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1"))
        fetch = collect(decode.decode.decode(work(PROMPT, request_id="r1", handoff=prefill.handoff("t1"))))
        started = time.monotonic()
        results = await asyncio.gather(leg, fetch, return_exceptions=True)
        assert all(isinstance(result, BatonError) for result in results)
        assert time.monotonic() - started < 20
        await at_rest(prefill, decode)


async def test_decode_full_of_reservations_still_moves():
    """Requests that together exceed decode's pool wait for blocks and all come through."""
    prefill, decode = pair(num_blocks=24)
    async with running(prefill, decode):
        results = await asyncio.gather(*(both_legs(prefill, decode, work([i, *PROMPT]), f"t{i}") for i in range(8)))
        for i, (_, tokens, _) in enumerate(results):
            assert ids(tokens[0]) == expected_tokens([i, *PROMPT], GREEDY, 8)
        await at_rest(prefill, decode)


async def test_reader_leaves_mid_decode_after_a_handoff():
    """Closing the stream mid-decode frees everything on both sides."""
    prefill, decode = pair()
    async with running(prefill, decode):
        leg = asyncio.create_task(prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1")))
        request = work(
            PROMPT, SamplingParams(temperature=0.0, max_tokens=200), request_id="r1", handoff=prefill.handoff("t1")
        )
        async with contextlib.aclosing(decode.decode.decode(request)) as events:
            await anext(events)
        await leg
        await at_rest(prefill, decode)


async def test_decode_leg_that_ends_mid_prefill_leaks_no_block():
    """A ticket that is given back while its prompt still runs frees the prompt's blocks, whatever prefill does then."""
    prefill, decode = pair(max_num_batched_tokens=8)
    async with running(prefill, decode):
        prefill.engine.gate.clear()
        leg = asyncio.create_task(prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1")))
        request = work(PROMPT, request_id="r1", handoff=prefill.handoff("t1"))
        fetch = asyncio.create_task(collect(decode.decode.decode(request)))
        await decode.settled(lambda: decode.tier.load().handoffs == 1)
        fetch.cancel()
        await asyncio.gather(fetch, return_exceptions=True)
        await prefill.settled(lambda: prefill.tier.load().handoffs == 0)
        prefill.engine.gate.set()
        await asyncio.gather(leg, return_exceptions=True)
        await at_rest(prefill, decode)


async def test_refused_prefill_fails_the_decode_leg_at_once():
    """When prefill refuses a prompt, the decode leg that waits for its ticket learns why and does not wait."""
    prefill, decode = pair(num_blocks=6)
    decode.engine = FakeEngine(FakeLimits(num_blocks=64))
    async with running(prefill, decode):
        fetch = asyncio.create_task(
            collect(decode.decode.decode(work(PROMPT, request_id="r1", handoff=prefill.handoff("t1"))))
        )
        await decode.settled(lambda: decode.tier.load().waiting_requests == 1)
        with pytest.raises(KvPoolFull):
            await prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1"))
        with pytest.raises(KvPoolFull):
            await asyncio.wait_for(fetch, 20)
        await at_rest(prefill, decode)


async def test_ticket_of_another_request_is_refused():
    """KV is only handed to the request that it was computed for: a mixed-up ticket never becomes tokens."""
    prefill, decode = pair(num_blocks=128)
    async with running(prefill, decode):
        await prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1"))
        with pytest.raises(TicketUnknown):
            await collect(decode.decode.decode(work([1, *PROMPT[1:]], handoff=prefill.handoff("t1"))))
        await at_rest(prefill, decode)
