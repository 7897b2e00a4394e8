"""One call for the tokens of all requests to a worker, on real sockets: shared, replaced, done without."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from baton.v1 import decode_pb2, decode_pb2_grpc

from services.common.errors import DeadlineExceeded, PeerUnreachable, SlowReader
from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import DecodeEvent, Tier
from services.decode import reading, token_reader
from services.decode.client import DecodeClient
from services.decode.convert import request_to_proto
from services.decode.place import Place
from services.frontend.connection import Connection
from tests.harness.fake_engine import FakeEngine, expected_tokens
from tests.harness.scripted_workers import Script, ScriptedWorker
from tests.harness.tiers import TierServer, collect, ids, running, until, work

PROMPTS = [list(range(i, i + 10)) for i in range(8)]
LONG = SamplingParams(temperature=0.0, max_tokens=40)


async def held(engine: FakeEngine) -> None:
    """Waits until the engine stands still after its first step: `hold_next` came to pass."""
    await until(lambda: not engine.gate.is_set())


def counts(server: TierServer) -> tuple[int, int]:
    """Watches, and the requests on them."""
    counters = server.tier.load().counters
    return counters["token_watches"], counters["watched_requests"]


async def test_requests_share_one_watch() -> None:
    """All of a client's requests name the same; each gets its own tokens."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        engine.hold_next()
        tasks = [asyncio.ensure_future(collect(server.decode.decode(work(prompt, LONG)))) for prompt in PROMPTS]
        await held(engine)
        await until(lambda: counts(server) == (1, len(PROMPTS)))
        assert server.decode.stats() == {"token_watches": 1, "watched_requests": len(PROMPTS)}
        engine.gate.set()
        for prompt, (tokens, last) in zip(PROMPTS, await asyncio.gather(*tasks), strict=True):
            assert ids(tokens[0]) == expected_tokens(prompt, LONG, 40)
            assert last.summary is not None
            assert last.summary.usage.completion_tokens == 40
        await until(lambda: counts(server) == (1, 0))
        assert server.decode.stats() == {"token_watches": 1, "watched_requests": 0}
    assert counts(server) == (0, 0)
    await until(lambda: not any(server.decode.stats().values()))


async def test_tokens_of_a_step_are_one_message() -> None:
    """However many requests are in it."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server), open_channel(server.info.address) as channel:
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        watch = stub.WatchTokens(decode_pb2.WatchTokensRequest(watch_id="mine"))
        assert not (await watch.read()).requests
        engine.hold_next()
        requests = [request_to_proto(work(prompt, LONG), Place("mine", key)) for key, prompt in enumerate(PROMPTS)]
        calls = [stub.Decode(request, timeout=40) for request in requests]
        await held(engine)
        await until(lambda: counts(server)[1] == len(PROMPTS))
        engine.gate.set()
        seen: list[int] = []
        while sum(seen) < 39 * len(PROMPTS):
            message = await watch.read()
            seen.append(sum(len(choice.tokens) for part in message.requests for choice in part.choices))
        last = [[message async for message in call] for call in calls]
        assert len(seen) < 39 * 2
        assert [len(messages) for messages in last] == [1] * len(PROMPTS)
        assert {message.watched_tokens for (message,) in last} == {39}
        watch.cancel()


async def test_requests_of_a_lost_watch_fail_and_the_next_one_opens_another() -> None:
    """Their tokens could not come any more; they may be moved."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        engine.hold_next()
        lost = asyncio.ensure_future(collect(server.decode.decode(work(PROMPTS[0], LONG))))
        await held(engine)
        await until(lambda: counts(server) == (1, 1))
        server.decode._tokens._watch._call.cancel()
        with pytest.raises(PeerUnreachable):
            await lost
        engine.gate.set()
        tokens, _ = await collect(server.decode.decode(work(PROMPTS[1], LONG)))
        assert ids(tokens[0]) == expected_tokens(PROMPTS[1], LONG, 40)
        await until(lambda: counts(server) == (1, 0))
        await server.settled(lambda: server.blocks_held == 0)


@pytest.mark.parametrize("when", ["at rest", "in a request"])
async def test_who_lets_go_of_a_worker_leaves_no_watch_there(when: str) -> None:
    """Also where the worker lives on: closing a channel does not end a stream that has begun."""
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        connection = Connection(server.info, max_message_bytes=2**20)
        await collect(connection.decode.decode(work(PROMPTS[0], LONG)))
        assert counts(server) == (1, 0)
        engine.hold_next()
        rest = asyncio.ensure_future(collect(connection.decode.decode(work(PROMPTS[1], LONG))))
        if when == "at rest":
            engine.on_step = None
            await rest
        else:
            await held(engine)
        await connection.close()
        if when != "at rest":
            with pytest.raises(PeerUnreachable):
                await rest
            engine.gate.set()
        await until(lambda: counts(server) == (0, 0))
        await server.settled(lambda: server.blocks_held == 0)
        await until(lambda: not any(connection.decode.stats().values()))


async def test_who_leaves_too_much_unread_gets_an_error_after_what_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer came whole to this process, last event and all; but tokens of it were dropped here."""
    monkeypatch.setattr(reading, "MAX_UNREAD_TOKENS", 8)
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server), contextlib.aclosing(server.decode.decode(work(PROMPTS[0], LONG))) as events:
        engine.hold_next()
        beginning = asyncio.ensure_future(anext(events))
        await until(lambda: counts(server) == (1, 1))
        (unread,) = server.decode._tokens._watch._readings.values()
        seen = ids(list((await beginning).choices[0].tokens))
        engine.gate.set()
        await until(lambda: unread._is_ended)
        with pytest.raises(SlowReader):
            await read_on(events, seen)
        assert seen == expected_tokens(PROMPTS[0], LONG, len(seen))
        await server.settled(lambda: server.blocks_held == 0)


async def read_on(events: AsyncIterator[DecodeEvent], seen: list[int]) -> None:
    """Adds the ids of all tokens of the only choice."""
    async for event in events:
        seen += [token.id for choice in event.choices for token in choice.tokens]


async def test_an_old_watch_ends_with_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """New requests go over another one meanwhile, so that no call grows old."""
    monkeypatch.setattr(token_reader, "WATCH_S", 0.0)
    engine = FakeEngine()
    server = TierServer(Tier.COLOCATED, engine)
    async with running(server):
        engine.hold_next()
        first = asyncio.ensure_future(collect(server.decode.decode(work(PROMPTS[0], LONG))))
        await held(engine)
        await until(lambda: counts(server) == (1, 1))
        second = asyncio.ensure_future(collect(server.decode.decode(work(PROMPTS[1], LONG))))
        await until(lambda: counts(server) == (2, 2))
        engine.gate.set()
        for prompt, (tokens, _) in zip(PROMPTS, await asyncio.gather(first, second), strict=False):
            assert ids(tokens[0]) == expected_tokens(prompt, LONG, 40)
        await collect(server.decode.decode(work(PROMPTS[2], LONG)))
        await until(lambda: counts(server) == (1, 0))


async def test_a_worker_without_watches_sends_tokens_over_each_call() -> None:
    """As one of an earlier version does; it is asked once."""
    worker = ScriptedWorker(Tier.DECODE, Script([1, 2, 3]))
    await worker.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(worker.stop)
        channel = await stack.enter_async_context(open_channel(worker.address))
        client = DecodeClient(channel, "worker")
        for _ in range(2):
            tokens, _ = await collect(client.decode(work(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=3))))
            assert ids(tokens[0]) == [1, 2, 3]
        assert not client._tokens._is_served
        assert [request.watch_id for request in worker.requests] == ["", ""]


async def test_a_worker_that_says_nothing_is_not_waited_for() -> None:
    """Neither by the request that opens the watch nor by those that wait for it: each has its own deadline."""

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    silent: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with open_channel(f"{host}:{port}") as channel:
            client = DecodeClient(channel, "worker")
            deadline = time.monotonic() + 0.2
            tasks = [collect(client.decode(work(prompt, LONG, deadline=deadline))) for prompt in PROMPTS]
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for writer in silent:
            writer.close()
    assert [type(end) for end in ends] == [DeadlineExceeded] * len(PROMPTS)
