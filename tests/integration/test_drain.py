"""Workers that leave: nothing new, what runs finishes or goes on elsewhere, no request fails."""

import asyncio
import time

import pytest

from services.common.errors import Draining
from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.common.worker_client import WorkerClient
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.spare_cluster import LIMITS, PROMPT, read, with_spare, working
from tests.harness.split_cluster import SplitCluster, entered, split_cluster
from tests.harness.tiers import TierServer, at_rest, both_legs, ids, running, until, work

GREEDY = SamplingParams(temperature=0.0)
DRAIN_S = 60.0


def drain(server: TierServer, move_after_s: float | None = None, timeout_s: float = DRAIN_S) -> "asyncio.Task[int]":
    """Starts to drain a worker through its RPC; gives what remained."""
    return asyncio.create_task(WorkerClient(server.channel, server.info.worker_id).drain(timeout_s, move_after_s))


async def one_entered(*servers: TierServer) -> TierServer:
    """The worker whose engine, standing still, got the request."""
    waits = [asyncio.create_task(entered(server.engine)) for server in servers]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.engine.entered.release()  # ends the other wait
    await asyncio.gather(*waits)
    return working(*servers)


def close_gates(*servers: TierServer) -> None:
    """Stops every engine before its next step."""
    for server in servers:
        server.engine.gate.clear()


def open_gates(*servers: TierServer) -> None:
    """Lets the engines go on."""
    for server in servers:
        server.engine.on_step = None
        server.engine.gate.set()


async def test_decode_moves_a_running_stream():
    """A decode worker that must leave at once sends its stream on: every token once, in order, and nothing is left."""
    async with with_spare(frontend={"max_moves": 1}) as (cluster, _, spare):
        decodes = (cluster.decode, spare)
        for server in decodes:
            server.engine.hold_next()
        call = cluster.start(PROMPT, max_tokens=40)
        first = await call.read()
        await until(lambda: any(server.engine.steps for server in decodes))
        victim = working(*decodes)
        open_gates(*(server for server in decodes if server is not victim))
        reading = asyncio.create_task(read(call, first))
        leaving = drain(victim, move_after_s=0)
        await until(lambda: victim.tier.load().counters["moved_requests"] == 1)
        open_gates(victim)
        tokens, completion = await reading
        assert await leaving == 0
        assert tokens[0] == expected_tokens(PROMPT, GREEDY, 40)
        assert completion.moves == 1
        assert await cluster.tokens(PROMPT, max_tokens=8) == expected_tokens(PROMPT, GREEDY, 8)
        await at_rest(cluster.prefill, victim)


@pytest.mark.parametrize("kind", [Tier.PREFILL, Tier.DECODE], ids=lambda kind: kind.value)
async def test_leaving_mid_prompt_replays_it(kind: Tier):
    """Whichever worker leaves while the prompt computes, the request starts over elsewhere and no block stays held."""
    async with with_spare() as (cluster, spare_prefill, spare_decode):
        prefills = (cluster.prefill, spare_prefill)
        close_gates(*prefills)
        reading = asyncio.create_task(read(cluster.start(PROMPT, max_tokens=8)))
        runs_prompt = await one_entered(*prefills)
        decodes = (cluster.decode, spare_decode)
        await until(lambda: any(server.tier.load().counters["live_requests"] for server in decodes))
        victim = runs_prompt if kind is Tier.PREFILL else working(*decodes)
        leaving = drain(victim, move_after_s=0)
        await until(lambda: victim.tier.load().counters["moved_requests"] == 1)
        open_gates(*prefills)
        tokens, completion = await reading
        assert await leaving == 0
        assert tokens[0] == expected_tokens(PROMPT, GREEDY, 8)
        assert completion.moves >= 1
        await at_rest(*prefills, *decodes)


async def test_without_hurry_nothing_moves():
    """A drain with time to spare lets the stream end where it runs, even if nobody else could take it."""
    async with split_cluster(LIMITS) as cluster:
        cluster.decode.engine.hold_next()
        call = cluster.start(PROMPT, max_tokens=40)
        first = await call.read()
        await until(lambda: cluster.decode.engine.steps > 0)
        leaving = drain(cluster.decode)
        await until(lambda: cluster.decode.tier.load().draining)
        open_gates(cluster.decode)
        tokens, completion = await read(call, first)
        assert tokens[0] == expected_tokens(PROMPT, GREEDY, 40)
        assert completion.moves == 0
        assert await leaving == 0


async def test_what_cannot_finish_in_time_is_sent_on():
    """Close to its deadline a drain ends what still runs with Draining instead of leaving it to be cut off."""
    server = TierServer(Tier.COLOCATED, FakeEngine(LIMITS))
    async with running(server):
        server.engine.gate.clear()
        call = asyncio.create_task(anext(server.decode.decode(work(PROMPT))))
        await entered(server.engine)
        leaving = drain(server, timeout_s=4.0)
        with pytest.raises(Draining):
            await call
        server.engine.gate.set()
        assert await leaving == 0


async def test_prefill_waits_until_its_blocks_are_fetched():
    """A finished prompt's KV outlives the drain's beginning: the decode worker still gets it, then nothing is left."""
    prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        decode.engine.gate.clear()
        other = asyncio.create_task(anext(decode.decode.decode(work([1, 2, 3]))))
        await entered(decode.engine)  # no blocks can be reserved while this step lasts
        legs = asyncio.create_task(both_legs(prefill, decode, work(PROMPT), "t"))
        await until(lambda: prefill.tier.load().handoffs == 1 and prefill.tier.load().running_requests == 0)
        leaving = drain(prefill)
        await until(lambda: prefill.tier.load().draining)
        assert prefill.tier.load().handoffs == 1
        decode.engine.gate.set()
        _, tokens, last = await legs
        assert ids(tokens[0]) == expected_tokens(PROMPT, GREEDY, 8)
        assert last.summary.prefilled_tokens == 0
        assert await leaving == 0
        assert prefill.tier.load().counters["moved_requests"] == 0
        await other


async def test_prefill_waits_no_longer_than_the_lease():
    """Blocks that nobody fetches hold a drain up until their lease ends, not until its deadline."""
    prefill = TierServer(Tier.PREFILL, FakeEngine(FakeLimits(num_blocks=128)), kv_lease_s=1.0)
    async with running(prefill):
        await prefill.prefill.prefill(work(PROMPT, ticket_id="t"))
        began = time.monotonic()
        assert await drain(prefill, timeout_s=90.0) == 0
        assert time.monotonic() - began < 30
        assert prefill.tier.load().counters["source_tickets_expired_total"] == 1


async def test_unfetched_blocks_of_a_hurried_drain_are_run_elsewhere():
    """A ticket that is given up fails its decode leg with Draining, at once."""
    prefill, decode = TierServer(Tier.PREFILL), TierServer(Tier.DECODE)
    async with running(prefill, decode):
        decode.engine.gate.clear()
        other = asyncio.create_task(anext(decode.decode.decode(work([1, 2, 3]))))
        await entered(decode.engine)
        legs = asyncio.create_task(both_legs(prefill, decode, work(PROMPT), "t"))
        await until(lambda: prefill.tier.load().handoffs == 1 and prefill.tier.load().running_requests == 0)
        assert await drain(prefill, move_after_s=0) == 0
        decode.engine.gate.set()
        with pytest.raises(Draining):
            await legs
        await other
        await at_rest(prefill, decode)


async def one_after_another(cluster: SplitCluster, count: int) -> None:
    """A steady client: each answer is right, or the test fails."""
    for number in range(count):
        prompt = [number, *PROMPT]
        assert await cluster.tokens(prompt, max_tokens=30) == expected_tokens(prompt, GREEDY, 30)


async def test_draining_under_load_fails_nothing():
    """Four steady clients while a worker of each tier leaves in a hurry: no request fails, no token is wrong."""
    async with with_spare() as (cluster, spare_prefill, spare_decode):
        clients = [asyncio.create_task(one_after_another(cluster, 6)) for _ in range(4)]
        busy = (spare_prefill.tier, spare_decode.tier)
        await until(lambda: all(tier.load().counters["engine_steps"] for tier in busy))
        left = await asyncio.gather(drain(spare_prefill, move_after_s=0), drain(spare_decode, move_after_s=0))
        assert left == [0, 0]
        await asyncio.gather(*clients)
        await at_rest(cluster.prefill, cluster.decode, spare_prefill, spare_decode)
