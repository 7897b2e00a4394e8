"""A request whose workers fail goes on with others, token for token, in one stream."""

import asyncio

import pytest

from services.common.sampling import SamplingParams
from services.common.types import Tier
from tests.harness.fake_engine import FakeEngine, expected_tokens
from tests.harness.spare_cluster import LIMITS, PROMPT, hold_at, read, with_spare, working
from tests.harness.split_cluster import entered, split_cluster
from tests.harness.tiers import WAIT_S, TierServer, at_rest, ids, running, work

SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "seeded choices": {"temperature": 1.0, "seed": 5, "n": 3},
    "stop token": {"temperature": 0.0, "min_tokens": 20, "stop_token_ids": [3, 4, 5, 6]},
}


@pytest.mark.parametrize("kind", SAMPLINGS)
async def test_migration_goes_on_token_exact(kind: str):
    """The decode worker ends mid-stream: another one goes on at the next index as if nothing had happened."""
    params = {"max_tokens": 40, **SAMPLINGS[kind]}
    async with with_spare() as (cluster, _, spare):
        undisturbed, _ = await read(cluster.start(PROMPT, **params))
        await cluster.at_rest()
        go_on = hold_at(5, cluster.decode, spare)
        call = cluster.start(PROMPT, **params)
        first = await call.read()
        assert first.deltas
        reading = asyncio.create_task(read(call, first))
        await working(cluster.decode, spare).tier.close()
        go_on.set()
        tokens, completion = await reading
        assert tokens == undisturbed
        assert completion.moves >= 1


async def test_requests_of_an_engine_that_fails_go_on():
    """An exception that escapes an engine ends its process, not the requests that it ran."""
    async with with_spare() as (cluster, _, spare):
        undisturbed, _ = await read(cluster.start(PROMPT, temperature=0.0, max_tokens=40))
        await cluster.at_rest()
        go_on = hold_at(5, cluster.decode, spare)
        call = cluster.start(PROMPT, temperature=0.0, max_tokens=40)
        first = await call.read()
        victim = working(cluster.decode, spare)
        victim.engine.on_step = _explode
        go_on.set()
        tokens, completion = await read(call, first)
        assert tokens == undisturbed
        assert completion.moves == 1
        assert isinstance(await asyncio.wait_for(victim.fatal.wait(), WAIT_S), RuntimeError)


async def test_replay_before_the_first_token():
    """The prefill worker ends with the prompt half run: another one starts over, and the client sees one answer."""
    async with with_spare() as (cluster, spare, _):
        for server in (cluster.prefill, spare):
            server.engine.gate.clear()
        call = cluster.start(PROMPT, temperature=0.0, max_tokens=8)
        reading = asyncio.create_task(read(call))
        await asyncio.wait(
            [asyncio.create_task(entered(server.engine)) for server in (cluster.prefill, spare)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        victim = working(cluster.prefill, spare)
        closing = asyncio.create_task(victim.tier.close())
        for server in (cluster.prefill, spare):
            server.engine.gate.set()
        await closing
        tokens, completion = await reading
        assert tokens[0] == expected_tokens(PROMPT, SamplingParams(temperature=0.0), 8)
        assert completion.moves == 1


async def test_no_moves_allowed_means_the_failure_itself():
    """With moves switched off the client gets the typed error."""
    async with split_cluster(LIMITS, frontend={"max_moves": 0}) as cluster:
        cluster.prefill.engine.gate.clear()
        call = cluster.start(PROMPT, temperature=0.0)
        reading = asyncio.create_task(read(call))
        await entered(cluster.prefill.engine)
        closing = asyncio.create_task(cluster.prefill.tier.close())
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await reading
        cluster.prefill.engine.gate.set()
        await closing


@pytest.mark.parametrize("done", [0, 1, 2, 7, 12])
async def test_begun_request_is_continued_by_a_decode_worker(done: int):
    """Given what was emitted, a decode worker emits exactly the rest, from the right index, for every open choice."""
    sampling = SamplingParams(seed=3, n=2, max_tokens=16)
    server = TierServer(Tier.DECODE, FakeEngine(LIMITS))
    async with running(server):
        whole = {choice: expected_tokens(PROMPT, sampling, 16, choice=choice) for choice in range(2)}
        emitted = {choice: tuple(tokens[:done]) for choice, tokens in whole.items()}
        events = [event async for event in server.decode.decode(work(PROMPT, sampling, emitted=emitted))]
        for choice, tokens in whole.items():
            got = [t for event in events for part in event.choices if part.choice == choice for t in part.tokens]
            assert [token.index for token in got] == list(range(done, 16))
            assert ids(got) == tokens[done:]
        assert events[-1].summary.usage.completion_tokens == 2 * (16 - done)
        await at_rest(server)


async def test_only_open_choices_go_on():
    """A choice that had ended on the first worker is not run again."""
    sampling = SamplingParams(seed=3, n=2, max_tokens=10)
    server = TierServer(Tier.DECODE, FakeEngine(LIMITS))
    async with running(server):
        emitted = {1: tuple(expected_tokens(PROMPT, sampling, 4, choice=1))}
        events = [event async for event in server.decode.decode(work(PROMPT, sampling, emitted=emitted))]
        assert {part.choice for event in events for part in event.choices} == {1}
        await at_rest(server)


def _explode(items: object) -> None:
    raise RuntimeError("device lost")
