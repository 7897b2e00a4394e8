"""The decode tier alone (it runs prompts itself), on a real socket, over the hand-computable engine."""

import asyncio
import contextlib
import time

import pytest

from services.common.errors import DeadlineExceeded, InvalidRequest, KvPoolFull, Overloaded
from services.common.sampling import SamplingParams
from services.common.types import FinishReason, Tier
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.split_cluster import entered
from tests.harness.tiers import GREEDY, TierServer, collect, ids, running, until, work

PROMPT = list(range(10, 30))


async def test_tokens_are_the_expected_ones():
    """A request without a handoff is run here, token for token, and leaves no block held."""
    server = TierServer(Tier.COLOCATED)
    async with running(server):
        tokens, last = await collect(server.decode.decode(work(PROMPT)))
        assert ids(tokens[0]) == expected_tokens(PROMPT, GREEDY, 8)
        assert last.choices[-1].finish is FinishReason.LENGTH
        assert last.summary.prefilled_tokens == len(PROMPT)
        assert last.summary.usage.completion_tokens == 8
        assert last.summary.stages.decode_ns > 0
        await server.settled(lambda: server.blocks_held == 0)


async def test_many_at_once_do_not_disturb_each_other():
    """Requests of mixed lengths and choices in one batch give what each gives alone, with preemption forced."""
    engine = FakeEngine(FakeLimits(num_blocks=16, max_num_seqs=6, max_num_batched_tokens=8, max_model_len=64))
    server = TierServer(Tier.COLOCATED, engine)
    loads = [(list(range(i, i + 5 + i)), SamplingParams(seed=i, max_tokens=6 + i, n=1 + i % 3)) for i in range(1, 13)]
    async with running(server):
        engine.gate.clear()
        answers = asyncio.gather(*(collect(server.decode.decode(work(prompt, sampling))) for prompt, sampling in loads))
        await server.settled(lambda: server.tier.load().counters["live_requests"] == len(loads))
        engine.gate.set()
        results = await answers
        for (prompt, sampling), (tokens, _) in zip(loads, results, strict=True):
            for choice in range(sampling.n):
                assert ids(tokens[choice]) == expected_tokens(prompt, sampling, sampling.max_tokens, choice=choice)
        assert server.tier.load().counters["preemptions"] > 0
        await server.settled(lambda: server.blocks_held == 0)


async def test_stop_token_ends_a_choice():
    """Output ends with the stop token, which is the last token reported."""
    expected = expected_tokens(PROMPT, GREEDY, 8)
    sampling = SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=(expected[3],))
    server = TierServer(Tier.COLOCATED)
    async with running(server):
        tokens, last = await collect(server.decode.decode(work(PROMPT, sampling)))
        assert ids(tokens[0]) == expected[: expected.index(expected[3]) + 1]
        assert last.choices[-1].finish is FinishReason.STOP


async def test_min_tokens_masks_the_stop_token():
    """Before min_tokens no stop token is even sampled."""
    expected = expected_tokens(PROMPT, GREEDY, 8)
    sampling = SamplingParams(temperature=0.0, max_tokens=8, min_tokens=2, stop_token_ids=(expected[0],))
    server = TierServer(Tier.COLOCATED)
    async with running(server):
        tokens, _ = await collect(server.decode.decode(work(PROMPT, sampling)))
        assert expected[0] not in ids(tokens[0])[:2]


async def test_cancel_stops_within_one_step():
    """When the reader leaves, the request is out of the batch before the step after next, its blocks free."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        engine.hold_next()
        async with contextlib.aclosing(server.decode.decode(work(PROMPT, SamplingParams(temperature=0.0)))) as events:
            await anext(events)
            for _ in range(2):  # it stands still in its second step
                await entered(engine)
        await server.settled(lambda: server.tier.load().counters["live_requests"] == 0)
        before = engine.steps
        engine.gate.set()
        await server.settled(lambda: server.blocks_held == 0)
        assert engine.steps <= before + 1


async def test_deadline_in_decode():
    """A request whose time runs out mid-decode gets DEADLINE_EXCEEDED and its blocks are free."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        engine.hold_next()
        request = work(PROMPT, SamplingParams(temperature=0.0), deadline=time.monotonic() + 0.5)
        with pytest.raises(DeadlineExceeded):
            await collect(server.decode.decode(request))
        engine.gate.set()
        await server.settled(lambda: server.blocks_held == 0)


async def test_request_that_can_never_fit_is_refused():
    """A request that may outgrow the pool is refused before it starts."""
    server = TierServer(Tier.COLOCATED, FakeEngine(FakeLimits(num_blocks=8)))
    async with running(server):
        with pytest.raises(KvPoolFull):
            await collect(server.decode.decode(work(PROMPT, SamplingParams(temperature=0.0, max_tokens=100))))


async def test_more_choices_than_slots_are_refused():
    """A request that needs more slots than the worker has names the field."""
    server = TierServer(Tier.COLOCATED, FakeEngine(FakeLimits(max_num_seqs=2)))
    async with running(server):
        with pytest.raises(InvalidRequest, match=r"sampling\.n"):
            await collect(server.decode.decode(work(PROMPT, SamplingParams(seed=1, n=4))))


async def test_slow_reader_is_cut_off():
    """A caller that does not read ends with RESOURCE_EXHAUSTED instead of growing the worker's memory."""
    server = TierServer(Tier.COLOCATED, FakeEngine(FakeLimits(max_model_len=256)), max_unread_tokens=16)

    async def read_slowly() -> None:
        events = server.tier._worker.decode(work([1, 2], SamplingParams(temperature=0.0, max_tokens=200)))
        await anext(events)
        await until(lambda: server.blocks_held == 0 and server.tier.load().running_requests == 0)
        await collect(events)

    async with running(server):
        with pytest.raises(Overloaded, match="unread"):
            await read_slowly()
