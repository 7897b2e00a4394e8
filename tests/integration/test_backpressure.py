"""Backpressure between real tiers: no deadlock whichever pool fills first, no blocks without a seat, typed sheds."""

import asyncio
from collections import Counter
from dataclasses import replace

import grpc
import pytest

from services.common.errors import BatonError, QueueExpired, QueueFull
from services.common.priority import Priority
from services.common.rpc.status import from_rpc_error
from services.common.types import Tier, WorkRequest
from services.decode import server as decode_server
from services.frontend.client import GenerationClient, deadline_in
from services.frontend.request import GenerationRequest, TokenPrompt
from services.kvtransfer.config import TransferConfig
from services.prefill import server as prefill_server
from services.worker.settings import WorkerSettings, transfer_config
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.split_cluster import SplitCluster, entered, split_cluster
from tests.harness.tiers import GREEDY, WAIT_S, TierServer, at_rest, both_legs, collect, running, until, work

PROMPT = list(range(10, 40))
BLOCKS_EACH = 8
# KV of two tokens of the fake engine, and of no third.
MESSAGE_BYTES = 64


def small(num_blocks: int, **limits: int) -> FakeLimits:
    """A pool in which one request of this file, prompt and output, just fits several times or once."""
    return FakeLimits(num_blocks=num_blocks, max_model_len=48, **limits)


def ahead(seats: int, prompts: int) -> dict[Tier, dict[str, float]]:
    """How far prefill may run ahead of decode, as settings of the tiers."""
    return {Tier.DECODE: {"seats_ahead": seats}, Tier.PREFILL: {"prompts_ahead": prompts}}


@pytest.mark.parametrize(("prefill", "decode"), [(13, 120), (120, 13), (13, 13), (24, 36)])
async def test_whichever_pool_fills_first_every_request_ends_well(prefill: int, decode: int) -> None:
    """Twenty-four requests over pools that take one to four of them: all come through, token for token."""
    engines = FakeEngine(small(prefill)), FakeEngine(small(decode))
    async with split_cluster(engines=engines, own=ahead(2, 2)) as cluster:
        prompts = [[i, *PROMPT] for i in range(24)]
        answers = await asyncio.gather(*(cluster.tokens(prompt, max_tokens=8) for prompt in prompts))
        assert answers == [expected_tokens(prompt, GREEDY, 8) for prompt in prompts]
        await cluster.at_rest()


async def test_full_staging_holds_requests_up_and_ends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-four prompts of 16 messages each, two of which fit the staging of their channel: all come through."""

    def narrow(settings: WorkerSettings, device: str) -> TransferConfig:
        return replace(
            transfer_config(settings, device), max_message_bytes=MESSAGE_BYTES, staging_bytes=2 * MESSAGE_BYTES
        )

    for tier in (prefill_server, decode_server):
        monkeypatch.setattr(tier, "transfer_config", narrow)
    async with split_cluster(FakeLimits(num_blocks=512)) as cluster:
        prompts = [[i, *PROMPT] for i in range(24)]
        answers = await asyncio.gather(*(cluster.tokens(prompt, max_tokens=8) for prompt in prompts))
        assert answers == [expected_tokens(prompt, GREEDY, 8) for prompt in prompts]
        await cluster.at_rest()
        counters = cluster.prefill.tier.load().counters
        # Both buffers were taken at once, and there has never been a third.
        assert counters["source_staging_bytes"] == 2 * MESSAGE_BYTES
        assert counters["source_sent_messages"] >= 24 * 16


async def test_prefill_holds_no_blocks_for_whom_decode_has_no_seat() -> None:
    """While decode stands still, forty prompts are sent: those with KV at prefill have a seat, or are in the credit."""
    limits = FakeLimits(num_blocks=400, max_num_seqs=4)
    async with split_cluster(limits, own=ahead(3, 2)) as cluster:
        cluster.decode.engine.gate.clear()
        calls = [asyncio.create_task(cluster.tokens([i, *PROMPT], max_tokens=8)) for i in range(40)]
        await entered(cluster.decode.engine)
        await until(lambda: cluster.decode.tier.load().counters["seats_awaited"] == 40 - (4 + 3))
        await until(lambda: cluster.prefill.tier.load().counters["live_requests"] == 40 - (4 + 3 + 2))
        assert cluster.decode.tier.load().counters["seats_held"] == 4 + 3
        await until(lambda: cluster.prefill.tier.load().counters["prompts_ahead"] == 2)
        assert cluster.prefill.blocks_held <= (4 + 3 + 2) * BLOCKS_EACH
        cluster.decode.engine.gate.set()
        assert await asyncio.gather(*calls) == [expected_tokens([i, *PROMPT], GREEDY, 8) for i in range(40)]
        await cluster.at_rest()


async def test_a_prompt_that_no_decode_worker_asks_for_is_turned_away() -> None:
    """Without credit an unasked prompt takes no blocks, and after its time in the queue it ends typed, with a hint."""
    prefill = TierServer(Tier.PREFILL, prompts_ahead=0, queue_ttl_s=0.2)
    async with running(prefill):
        with pytest.raises(QueueExpired) as caught:
            await prefill.prefill.prefill(work(PROMPT, ticket_id="t1"))
        assert caught.value.retry_after_s
        assert prefill.engine.steps == 0
        labels = {"reason": "expired", "priority": "normal"}
        assert prefill.registry.get_sample_value("baton_prefill_shed_total", labels) == 1
        await at_rest(prefill)


async def test_a_prompt_runs_as_soon_as_a_decode_worker_asks() -> None:
    """Without credit a prompt takes no blocks until its decode leg has a seat and asks; then it runs at once."""
    prefill, decode = TierServer(Tier.PREFILL, prompts_ahead=0), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        leg = asyncio.create_task(prefill.prefill.prefill(work(PROMPT, request_id="r1", ticket_id="t1")))
        await prefill.settled(lambda: prefill.tier.load().waiting_requests == 1)
        assert prefill.blocks_held == 0
        tokens, _ = await collect(decode.decode.decode(work(PROMPT, request_id="r1", handoff=prefill.handoff("t1"))))
        await leg
        assert [token.id for token in tokens[0]] == expected_tokens(PROMPT, GREEDY, 8)
        await at_rest(prefill, decode)


async def test_whoever_asks_before_the_prompt_comes_is_remembered() -> None:
    """A decode leg that asks first lets the prompt run when it comes; one that asked and left does not count."""
    prefill, decode = TierServer(Tier.PREFILL, prompts_ahead=0), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        legs = [
            asyncio.create_task(
                collect(decode.decode.decode(work(PROMPT, handoff=prefill.handoff(ticket), request_id="r")))
            )
            for ticket in ("stays", "leaves")
        ]
        await until(lambda: prefill.tier.load().counters["source_fetches_waiting"] == 2)
        legs[1].cancel()
        await until(lambda: prefill.tier.load().counters["source_fetches_waiting"] == 1)
        await prefill.prefill.prefill(work(PROMPT, request_id="r", ticket_id="stays"))
        tokens, _ = await legs[0]
        assert [token.id for token in tokens[0]] == expected_tokens(PROMPT, GREEDY, 8)
        await at_rest(prefill)  # the ticket of the one that stays is given back after its last token
        steps = prefill.engine.steps
        left = asyncio.create_task(prefill.prefill.prefill(work(PROMPT, request_id="r", ticket_id="leaves")))
        await prefill.settled(lambda: prefill.tier.load().waiting_requests == 1)
        assert prefill.blocks_held == 0
        left.cancel()
        await asyncio.gather(*legs, left, return_exceptions=True)
        await at_rest(prefill, decode)
        assert prefill.engine.steps == steps


async def test_decode_turns_away_who_waits_too_long_for_a_seat() -> None:
    """With every seat taken a request waits as long as it may and ends typed."""
    engine = FakeEngine(FakeLimits(max_num_seqs=1))
    decode = TierServer(Tier.DECODE, engine, seats_ahead=0, queue_ttl_s=0.5)
    async with running(decode):
        engine.gate.clear()
        first = asyncio.create_task(collect(decode.decode.decode(work(PROMPT))))
        await entered(engine)
        with pytest.raises(QueueExpired) as caught:
            await collect(decode.decode.decode(work([1, 2, 3])))
        assert caught.value.retry_after_s
        engine.gate.set()
        await first
        await at_rest(decode)


async def test_high_priority_waits_in_front() -> None:
    """With every seat taken, a high request that comes after a low one is run before it."""
    low, high = work([1], priority=Priority.LOW), work([2], priority=Priority.HIGH)
    assert await order_of_prompts(work([0]), low, high) == [0, 2, 1]


async def order_of_prompts(*requests: WorkRequest) -> list[int]:
    """First tokens of prompts that wait for one seat, as the engine comes to them.

    Each comes when those before it wait. When their readers see an end is no order: streams overtake each other.
    """
    engine, order = FakeEngine(FakeLimits(max_num_seqs=1)), list[int]()
    engine.on_step = lambda items: order.extend(item.token_ids[0] for item in items if item.start == 0)
    decode = TierServer(Tier.DECODE, engine, seats_ahead=0)
    async with running(decode):
        engine.gate.clear()
        tasks = []
        for waiting, request in enumerate(requests):
            tasks.append(asyncio.create_task(read(decode, request)))
            await until(lambda waiting=waiting: decode.tier.load().counters["seats_awaited"] == waiting)
            if not waiting:
                await entered(engine)
        engine.gate.set()
        await asyncio.gather(*tasks)
        await at_rest(decode)
    return order


async def read(decode: TierServer, request: WorkRequest) -> None:
    """Reads an answer to its end."""
    async for _ in decode.decode.decode(request):
        pass


async def test_decode_turns_away_who_gets_no_blocks_in_time() -> None:
    """A seat alone is not enough: who waits too long for blocks is turned away, and its ticket is given back."""
    prefill = TierServer(Tier.PREFILL, FakeEngine(small(120)))
    decode = TierServer(Tier.DECODE, FakeEngine(small(13)), queue_ttl_s=1.5)
    async with running(prefill, decode):
        await both_legs(prefill, decode, work(PROMPT), "warm")
        while decode.engine.entered.acquire(blocking=False):
            pass
        decode.engine.gate.clear()
        first = asyncio.create_task(both_legs(prefill, decode, work(PROMPT), "t1"))
        await entered(decode.engine)
        with pytest.raises(QueueExpired):
            await collect(decode.decode.decode(work([1, *PROMPT])))
        decode.engine.gate.set()
        await first
        await at_rest(prefill, decode)


async def test_a_slow_reader_keeps_no_seat() -> None:
    """A seat is free when the last token is made, read or not."""
    decode = TierServer(Tier.DECODE, FakeEngine(FakeLimits(max_num_seqs=1)), seats_ahead=0)
    async with running(decode):
        unread = decode.decode.decode(work([1, 2, 3]))
        await anext(unread)
        tokens, _ = await collect(decode.decode.decode(work(PROMPT)))
        assert [token.id for token in tokens[0]] == expected_tokens(PROMPT, GREEDY, 8)
        await unread.aclose()
        await at_rest(decode)


async def _client(cluster: SplitCluster, name: int, priority: Priority, seen: Counter[str]) -> None:
    """Asks for four answers, one after the other, and comes back when told to."""
    async with GenerationClient(f"127.0.0.1:{cluster.frontend.port}") as client:
        for turn in range(4):
            prompt = TokenPrompt((name, turn, *PROMPT))
            while True:
                asked = GenerationRequest(
                    request_id="", prompt=prompt, sampling=GREEDY, priority=priority, deadline=deadline_in(WAIT_S)
                )
                try:
                    outputs = [output async for output in client.generate(asked)]
                except (QueueFull, QueueExpired) as error:
                    seen[f"{priority.name} shed"] += 1
                    await asyncio.sleep(error.retry_after_s or 1e9)
                else:
                    assert outputs[-1].completion is not None
                    seen[f"{priority.name} ok"] += 1
                    break


async def test_three_times_the_load_that_fits() -> None:
    """Thirty clients on ten places: sheds are typed with a hint, high priority is never shed, and no work is wasted."""
    seen: Counter[str] = Counter()
    classes = [Priority.HIGH] * 3 + [Priority.NORMAL] * 12 + [Priority.LOW] * 15
    frontend = {"max_running_requests": 5, "max_waiting_requests": 5}
    async with split_cluster(FakeLimits(num_blocks=120), frontend=frontend) as cluster:
        await asyncio.gather(*(_client(cluster, i, priority, seen) for i, priority in enumerate(classes)))
        assert {name: count for name, count in seen.items() if name.endswith("ok")} == {
            "HIGH ok": 12,
            "NORMAL ok": 48,
            "LOW ok": 60,
        }
        assert seen["HIGH shed"] == 0
        assert seen["LOW shed"] > 0
        assert cluster.prefill.tier.load().counters["prefilled_tokens"] == 120 * (2 + len(PROMPT))
        await cluster.at_rest()


async def test_sheds_of_a_worker_reach_the_client_as_resource_exhausted() -> None:
    """Where the workers, not the frontend, are full, the client sees RESOURCE_EXHAUSTED and when to come back."""
    # Only decode's queue has a short time: the first prompt may wait at prefill for as long as the channel takes.
    own = ahead(0, 0)
    own[Tier.DECODE]["queue_ttl_s"] = 1.0
    settings = {"own": own, "max_queued_requests": 1}
    async with split_cluster(FakeLimits(max_num_seqs=1), frontend={"max_moves": 0}, **settings) as cluster:
        cluster.decode.engine.gate.clear()
        calls = [asyncio.create_task(cluster.tokens([0, *PROMPT]))]
        await entered(cluster.decode.engine)
        calls += [asyncio.create_task(cluster.tokens([i, *PROMPT])) for i in range(1, 6)]
        await until(lambda: sum(call.done() for call in calls) == 5)
        cluster.decode.engine.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        errors = [from_rpc_error(each, "it") for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert len(errors) == 5
        assert {type(error) for error in errors} == {QueueFull, QueueExpired}
        assert all(error.retry_after_s for error in errors)
        await cluster.at_rest()


def test_every_shed_is_retryable() -> None:
    """What a queue turns away may be tried again: the errors are of one branch, with a code of their own."""
    for cls in (QueueFull, QueueExpired):
        error: BatonError = cls("full", retry_after_s=1.0)
        assert error.code.name == "RESOURCE_EXHAUSTED"
        assert error.retry.value == "other_worker"


async def test_a_stream_that_has_begun_elsewhere_goes_before_those_that_have_not() -> None:
    """A request that moved here is seated before normal ones that came earlier: its client sees it stand still."""
    moved = work([3, 4], emitted={0: tuple(expected_tokens([3, 4], GREEDY, 2))})
    assert await order_of_prompts(work(PROMPT), work([1, 2]), moved) == [PROMPT[0], 3, 1]
