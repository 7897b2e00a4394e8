"""The prefill tier alone, on a real socket, over the hand-computable engine."""

import asyncio
import dataclasses
import time

import pytest

from services.common.errors import (
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidRequest,
    KvPoolFull,
    QueueFull,
    StepFailed,
)
from services.common.sampling import SamplingParams
from services.common.types import FinishReason, Tier
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.tiers import GREEDY, WAIT_S, TierServer, running, work

PROMPT = list(range(10, 30))


async def test_first_token_is_the_expected_one():
    """A prompt run without a ticket gives the hand-computed first token and leaves no block held."""
    server = TierServer(Tier.PREFILL)
    async with running(server):
        result = await server.prefill.prefill(work(PROMPT))
        assert result.first_tokens[0].tokens[0].id == expected_tokens(PROMPT, GREEDY, 1)[0]
        assert result.usage.prompt_tokens == len(PROMPT)
        assert result.stages.prefill_ns > 0
        await server.settled(lambda: server.blocks_held == 0)


@pytest.mark.parametrize("budget", [1, 3, 7, 64])
async def test_chunk_size_does_not_change_the_token(budget: int):
    """Whatever the token budget, and so the chunks, the first token is the same."""
    server = TierServer(Tier.PREFILL, FakeEngine(FakeLimits(max_num_batched_tokens=budget, max_num_seqs=1)))
    async with running(server):
        result = await server.prefill.prefill(work(PROMPT))
        assert result.first_tokens[0].tokens[0].id == expected_tokens(PROMPT, GREEDY, 1)[0]


async def test_choices_have_their_own_first_tokens():
    """With n = 3 and a seed every choice draws its own number."""
    sampling = SamplingParams(seed=5, n=3)
    server = TierServer(Tier.PREFILL)
    async with running(server):
        result = await server.prefill.prefill(work(PROMPT, sampling))
        got = [choice.tokens[0].id for choice in result.first_tokens]
        assert got == [expected_tokens(PROMPT, sampling, 1, choice=choice)[0] for choice in range(3)]


async def test_max_tokens_one_ends_with_the_first_token():
    """A request for one token is finished by its prefill."""
    server = TierServer(Tier.PREFILL)
    async with running(server):
        result = await server.prefill.prefill(work(PROMPT, SamplingParams(temperature=0.0, max_tokens=1)))
        assert result.first_tokens[0].finish is FinishReason.LENGTH


async def test_second_prompt_reuses_the_prefix():
    """Full blocks of an equal prefix are not computed again, unless the cache salt differs."""
    server = TierServer(Tier.PREFILL)
    async with running(server):
        await server.prefill.prefill(work(PROMPT))
        again = await server.prefill.prefill(work(PROMPT))
        other = await server.prefill.prefill(work(PROMPT, cache_salt="tenant"))
        assert again.usage.cached_tokens == 16
        assert other.usage.cached_tokens == 0
        assert again.first_tokens == other.first_tokens


async def test_cancel_mid_prefill_stops_within_one_chunk():
    """A cancelled prompt computes at most the chunk that is under way, and its blocks are free again."""
    engine = FakeEngine(FakeLimits(max_num_batched_tokens=4, max_num_seqs=4))
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        engine.gate.clear()
        call = asyncio.create_task(server.prefill.prefill(work(range(40))))
        await asyncio.to_thread(engine.entered.acquire, timeout=10)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await server.settled(lambda: server.tier.load().counters["live_requests"] == 0)
        engine.gate.set()
        await server.settled(lambda: server.blocks_held == 0)
        assert engine.steps == 1


async def test_deadline_in_the_queue():
    """A prompt whose time runs out while it waits gets DEADLINE_EXCEEDED and is never computed."""
    engine = FakeEngine(FakeLimits(max_num_seqs=1))
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        engine.gate.clear()
        first = asyncio.create_task(server.prefill.prefill(work(PROMPT)))
        await asyncio.to_thread(engine.entered.acquire, timeout=10)
        with pytest.raises(DeadlineExceeded):
            await server.prefill.prefill(work(range(60, 80), deadline=time.monotonic() + 0.2))
        await server.settled(lambda: server.tier.load().counters["live_requests"] == 1)
        engine.gate.set()
        await first
        await server.settled(lambda: server.blocks_held == 0)
        assert engine.steps == 1


async def test_only_the_poisoned_request_fails():
    """A prompt whose logits are not numbers fails alone; its batch mates get their tokens."""
    engine = FakeEngine()
    engine.poison = 66
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        good, bad = await asyncio.gather(
            server.prefill.prefill(work(PROMPT)), server.prefill.prefill(work([66, 1])), return_exceptions=True
        )
        assert isinstance(bad, Internal)
        assert good.first_tokens[0].tokens[0].id == expected_tokens(PROMPT, GREEDY, 1)[0]
        await server.settled(lambda: server.blocks_held == 0)


async def test_a_step_that_raises_fails_only_whom_it_raises_for():
    """The worker finds the prompt for which the model raises: the others get their tokens, and it lives on."""
    engine = FakeEngine()
    engine.bomb = lambda item: 66 in item.token_ids
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        engine.gate.clear()
        calls = [asyncio.ensure_future(server.prefill.prefill(work([token, 1, 2]))) for token in (1, 2, 66, 3, 66, 4)]
        await asyncio.to_thread(engine.entered.acquire, timeout=10)
        await server.settled(lambda: server.tier.load().counters["live_requests"] == len(calls))
        engine.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, StepFailed) for result in results] == [False, False, True, False, True, False]
        for token, result in zip((1, 2, 3, 4), (r for r in results if not isinstance(r, StepFailed)), strict=True):
            assert result.first_tokens[0].tokens[0].id == expected_tokens([token, 1, 2], GREEDY, 1)[0]
        await server.settled(lambda: server.blocks_held == 0)
        assert server.fatal.error is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"token_ids": ()}, "token_ids"),
        ({"token_ids": (97,)}, "token_ids"),
        ({"token_ids": tuple(range(90)) * 3}, "token_ids"),
        ({"sampling": SamplingParams(temperature=float("nan"))}, "sampling"),
        ({"sampling": SamplingParams(temperature=-1.0)}, "sampling"),
        ({"sampling": SamplingParams(temperature=1.0)}, "sampling.seed"),
        ({"request_id": "x" * 200}, "request_id"),
    ],
)
async def test_bad_input_is_refused_by_name(change: dict, field: str):
    """What a worker cannot serve is refused with the field named, and nothing reaches a batch."""
    server = TierServer(Tier.PREFILL)
    async with running(server):
        with pytest.raises(InvalidRequest, match=field):
            await server.prefill.prefill(dataclasses.replace(work(PROMPT), **change))
        assert server.engine.steps == 0


async def test_too_many_requests_are_shed():
    """Beyond its bound the worker refuses with RESOURCE_EXHAUSTED and says when to come back."""
    engine = FakeEngine(FakeLimits(max_num_seqs=1))
    server = TierServer(Tier.PREFILL, engine, max_queued_requests=1)
    async with running(server):
        engine.gate.clear()
        waiting = [asyncio.create_task(server.prefill.prefill(work(PROMPT))) for _ in range(2)]
        await server.settled(lambda: server.tier.load().counters["live_requests"] == 2)
        with pytest.raises(QueueFull) as caught:
            await server.prefill.prefill(work(PROMPT))
        assert caught.value.retry_after_s
        engine.gate.set()
        await asyncio.gather(*waiting)


async def test_prompt_larger_than_the_pool_is_refused():
    """A prompt that can never fit is refused at once instead of waiting for ever."""
    server = TierServer(Tier.PREFILL, FakeEngine(FakeLimits(num_blocks=4)))
    async with running(server):
        with pytest.raises(KvPoolFull):
            await server.prefill.prefill(work(range(50)))


async def test_ticket_keeps_blocks_until_its_lease_ends():
    """With a ticket the KV stays after the first token, and is free again once nobody asked for it in time."""
    server = TierServer(Tier.PREFILL, FakeEngine(FakeLimits(num_blocks=128)), kv_lease_s=2.0)
    async with running(server):
        await server.prefill.prefill(work(PROMPT, ticket_id="t1"))
        assert server.blocks_held == 5
        await server.settled(lambda: server.blocks_held == 0)
        assert server.tier.load().handoffs == 0


async def test_draining_worker_refuses_and_finishes():
    """A draining worker takes nothing new and lets the running prompt end."""
    engine = FakeEngine()
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        engine.gate.clear()
        running_call = asyncio.create_task(server.prefill.prefill(work(PROMPT)))
        await asyncio.to_thread(engine.entered.acquire, timeout=10)
        drain = asyncio.create_task(server.tier.drain(time.monotonic() + 10))
        await server.settled(lambda: server.tier.load().draining)
        with pytest.raises(Draining):
            await server.prefill.prefill(work(PROMPT))
        engine.gate.set()
        assert (await running_call).first_tokens
        assert await drain == 0


async def test_stop_fails_what_runs_with_a_type():
    """A worker that stops tells its callers; nobody hangs."""
    engine = FakeEngine()
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        engine.gate.clear()
        call = asyncio.create_task(server.prefill.prefill(work(PROMPT)))
        await asyncio.to_thread(engine.entered.acquire, timeout=10)
        closing = asyncio.create_task(server.tier.close())
        with pytest.raises(Draining):
            await call
        engine.gate.set()
        await closing


async def test_engine_failure_ends_the_process():
    """An engine that cannot run anything any more sends the requests elsewhere and asks the process to end."""
    engine = FakeEngine()

    def explode(items: object) -> None:
        raise RuntimeError("device lost")

    engine.on_step = explode
    server = TierServer(Tier.PREFILL, engine)
    async with running(server):
        with pytest.raises(StepFailed):
            await server.prefill.prefill(work(PROMPT))
        assert isinstance(await asyncio.wait_for(server.fatal.wait(), WAIT_S), RuntimeError)


async def test_a_passing_failure_does_not_stay_in_the_prefix_cache():
    """Blocks of a prompt that failed are forgotten: the same prompt works once the cause is gone."""
    server = TierServer(Tier.PREFILL, FakeEngine(FakeLimits(max_num_batched_tokens=8)))
    server.engine.poison = PROMPT[-1]
    async with running(server):
        with pytest.raises(Internal):
            await server.prefill.prefill(work(PROMPT))
        server.engine.poison = None
        result = await server.prefill.prefill(work(PROMPT))
        assert result.usage.cached_tokens == 0
        assert result.first_tokens[0].tokens[0].id == expected_tokens(PROMPT, GREEDY, 1)[0]


async def test_withdrawals_beyond_the_inbox_are_not_lost():
    """However many requests come and go during one long step, all their blocks are free afterwards."""
    engine = FakeEngine(FakeLimits(num_blocks=8, max_num_seqs=2))
    server = TierServer(Tier.PREFILL, engine, max_queued_requests=2)
    async with running(server):
        engine.gate.clear()
        for i in range(40):
            call = asyncio.create_task(server.prefill.prefill(work([i, 1, 2])))
            await server.settled(lambda: server.tier.load().counters["live_requests"] == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await server.settled(lambda: server.tier.load().counters["live_requests"] == 0)
            if server.tier.load().counters["engine_inbox"] >= 20:
                break
        engine.gate.set()
        await server.settled(lambda: server.blocks_held == 0)
        assert (await server.prefill.prefill(work(PROMPT))).first_tokens
