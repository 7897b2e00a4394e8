"""A resumable request outlives its client's connection, for as long as configured and no longer."""

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

import grpc
import pytest
from baton.v1 import generation_pb2 as pb
from baton.v1 import types_pb2

from services.common.errors import Cancelled, ChannelBroken, NotFound, PeerUnreachable
from services.common.rpc.status import from_rpc_error
from services.frontend.client import GenerationClient
from services.frontend.request import Output
from tests.harness.relay import relay
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, request, tokens_of
from tests.harness.scripted_workers import Script, eventually, within

ANSWER = ids_of("the capital of France is Paris.")
SAMPLING = types_pb2.SamplingParams(temperature=0, max_tokens=32)
TIMEOUT_S = 10.0


def _start(running: Cluster) -> Any:
    return running.raw(pb.GenerateRequest(text="hello", sampling=SAMPLING, resumable=True))


def _resume(running: Cluster, token: str, received: int) -> Any:
    return running.stub.Resume(pb.ResumeRequest(resume_token=token, received=received), timeout=TIMEOUT_S)


async def _cancel(running: Cluster, token: str) -> bool:
    return (await running.stub.Cancel(pb.CancelRequest(resume_token=token), timeout=TIMEOUT_S)).was_running


async def _token(call: Any) -> str:
    first = await within(call.read())
    assert (bool(first.resume_token), list(first.deltas)) == (True, [])
    return first.resume_token


async def _begun(running: Cluster) -> tuple[Any, str]:
    call = _start(running)
    return call, await _token(call)


async def _first_piece(running: Cluster, call: Any) -> pb.GenerateResponse:
    """The first token's, which prefill brings; decode has been asked by then, so that it can be seen to be stopped."""
    piece = await within(call.read())
    await within(running.decode.asked.wait())
    return piece


async def _all(call: Any) -> list[pb.GenerateResponse]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message.piece if isinstance(message, pb.ResumeResponse) else message)
    return messages


def _ids(messages: list[pb.GenerateResponse]) -> list[int]:
    tokens = [token for message in messages for delta in message.deltas for token in delta.tokens]
    assert [token.index for token in tokens] == list(range(len(tokens))), "a token is missing or came twice"
    return [token.id for token in tokens]


def _held(script: Script, at: int = 3) -> Script:
    script.hold_at = at
    script.steps.clear()
    return script


async def _unread(running: Cluster) -> None:
    await eventually(lambda: running.process.stats()["unread_answers"] == 1)


async def test_lost_stream_goes_on_exactly_where_it_stopped() -> None:
    """After a lost call the rest comes over another one: no token missing, none twice, the same completion."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        call, token = await _begun(running)
        seen = [await within(call.read())]
        call.cancel()
        await _unread(running)
        script.steps.set()
        rest = await within(_all(_resume(running, token, len(seen))))
        assert _ids([*seen, *rest]) == ANSWER
        assert rest[-1].completion.usage.completion_tokens == len(ANSWER)
        assert len(running.decode.requests) == 1
        assert not running.decode.cancelled.is_set()


@pytest.mark.parametrize("received", range(len(ANSWER) + 1))
async def test_answer_can_be_taken_up_at_every_message(received: int) -> None:
    """Whichever message was the last to arrive, also after the request has ended, the others come."""
    async with cluster(Script(ANSWER)) as running:
        call, token = await _begun(running)
        whole = await within(_all(call))
        received = min(received, len(whole))
        rest = await within(_all(_resume(running, token, received)))
        assert [*whole[:received], *rest] == whole


async def test_window_ends_the_request_on_the_workers() -> None:
    """Without its client for longer than the window the request is stopped and freed everywhere, and the token dies."""
    script = _held(Script(ANSWER))
    async with cluster(script, resume_window_s=0.1) as running:
        call, token = await _begun(running)
        await _first_piece(running, call)
        call.cancel()
        await within(running.decode.cancelled.wait())
        await eventually(lambda: not any(_kept(running)))
        error = from_rpc_error(await within(running.fails(_resume(running, token, 1))), "the frontend")
        assert isinstance(error, NotFound)
        assert "send the request again" in error.message
        await running.idle()
        sample = running.process.registry.get_sample_value
        assert sample("baton_frontend_resumable_requests_dropped_total", {"reason": "window"}) == 1
        assert sample("baton_frontend_resumes_total", {"result": "unknown"}) == 1


def _kept(running: Cluster) -> list[int]:
    return [running.process.stats()[name] for name in ("kept_answers", "unread_answers", "resumable_requests")]


async def test_cancel_stops_the_compute_at_once() -> None:
    """Cancel with the token stops both workers without waiting for the window; who reads is told; again is no error."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        call, token = await _begun(running)
        await _first_piece(running, call)
        assert await _cancel(running, token)
        await within(running.decode.cancelled.wait())
        error = from_rpc_error(await within(running.fails(call)), "the frontend")
        assert isinstance(error, Cancelled)
        assert not await _cancel(running, token)
        await eventually(lambda: not any(_kept(running)))
        await running.idle()


async def test_second_reader_takes_over() -> None:
    """A call with the token ends the one before it, which is told, and gets everything it asks for."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        call, token = await _begun(running)
        await within(call.read())
        second = _resume(running, token, 0)
        seen = [(await within(second.read())).piece]
        error = from_rpc_error(await within(running.fails(call)), "the frontend")
        assert isinstance(error, Cancelled)
        script.steps.set()
        assert _ids([*seen, *await within(_all(second))]) == ANSWER


async def test_failure_is_kept_too() -> None:
    """What the request failed with while nobody read is told to whoever comes back."""
    script = _held(Script(ANSWER))
    async with cluster(script, max_moves=0) as running:
        call, token = await _begun(running)
        seen = [await within(call.read())]
        call.cancel()
        await _unread(running)
        script.decode_error, script.decode_error_at = ChannelBroken("gone"), script.hold_at + 1
        script.steps.set()
        await running.idle()
        error = from_rpc_error(await within(running.fails(_resume(running, token, len(seen)))), "the frontend")
        assert isinstance(error, ChannelBroken)


async def test_unread_answer_is_bounded() -> None:
    """An answer larger than the buffer waits for its reader, and what was read long ago is no longer there."""
    script = Script(ids_of("a " * 12))
    script.num_logprobs = 20
    async with cluster(script, resume_buffer_tokens=42, stream_buffer_events=2) as running:
        call, token = await _begun(running)
        call.cancel()
        await _unread(running)
        whole = await within(_all(_resume(running, token, 0)))
        assert _ids(whole) == ids_of("a " * 12)
        error = from_rpc_error(await within(running.fails(_resume(running, token, 0))), "the frontend")
        assert isinstance(error, NotFound), "the first messages were read long ago and are not kept"


async def test_plain_request_still_ends_with_its_call() -> None:
    """A request that is not resumable gets no token, and cancelling its call stops the workers at once."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        call = running.raw(pb.GenerateRequest(text="hello", sampling=SAMPLING))
        assert not (await _first_piece(running, call)).resume_token
        call.cancel()
        await within(running.decode.cancelled.wait())
        assert not any(_kept(running))


@pytest.mark.parametrize("settings", [{"resume_window_s": 0}, {"max_kept_answers": 1}])
async def test_frontend_that_keeps_no_more_serves_plainly(settings: dict[str, Any]) -> None:
    """Where nothing more may be kept the request is served all the same, without a token."""
    script = _held(Script(ANSWER))
    async with cluster(script, **settings) as running:
        first = _start(running)
        if settings.get("max_kept_answers"):
            await _token(first)
        second = _start(running)
        message = await within(second.read())
        assert message.deltas
        assert not message.resume_token
        for call in (first, second):
            call.cancel()


async def test_oldest_ended_answer_makes_room() -> None:
    """An answer that ended and that nobody reads gives way to a new resumable request."""
    async with cluster(Script(ANSWER), max_kept_answers=1) as running:
        for _ in range(3):
            call = _start(running)
            await _token(call)
            assert _ids(await within(_all(call))) == ANSWER
        assert running.process.stats()["kept_answers"] == 1


async def test_draining_frontend_keeps_only_what_is_read() -> None:
    """Drain stops the requests whose clients are gone, for they cannot come back, and lets the read ones finish."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        lost, read = _start(running), _start(running)
        await _token(lost)
        await _token(read)
        seen = [await within(read.read())]
        await within(lost.read())
        lost.cancel()
        await _unread(running)
        draining = asyncio.create_task(running.process.drain(time.monotonic() + TIMEOUT_S))
        await eventually(lambda: running.process.stats()["resumable_requests"] == 1)
        script.steps.set()
        assert _ids([*seen, *await within(_all(read))]) == ANSWER
        await within(draining)
        assert not any(_kept(running))


async def test_client_goes_on_by_itself() -> None:
    """The Python client survives a cut connection in the middle of an answer; its caller sees one stream."""
    script = _held(Script(ANSWER))
    async with (
        cluster(script) as running,
        relay(running.process.port) as link,
        GenerationClient(f"127.0.0.1:{link.port}") as client,
        contextlib.aclosing(client.generate(_asking())) as outputs,
    ):
        seen: list[Output] = [await within(anext(outputs)), await within(anext(outputs))]
        await within(running.decode.asked.wait())
        link.cut()
        await _unread(running)
        script.steps.set()
        seen += await within(_rest(outputs))
        assert (tokens_of(seen), link.connections) == (ANSWER, 2)
        assert seen[-1].completion is not None


async def test_client_that_closes_its_stream_withdraws_the_request() -> None:
    """Leaving a resumable stream through the Python client stops the workers, not only the reading."""
    script = _held(Script(ANSWER))
    async with cluster(script) as running:
        outputs = running.client.generate(_asking())
        await within(anext(outputs))
        await within(anext(outputs))
        await within(running.decode.asked.wait())
        await outputs.aclose()
        await within(running.decode.cancelled.wait())
        await eventually(lambda: not any(_kept(running)))


async def test_client_whose_frontend_forgot_learns_of_the_loss() -> None:
    """Where the answer is gone when the client comes back, its error is the lost connection, which may be retried."""
    script = _held(Script(ANSWER))
    async with (
        cluster(script, resume_window_s=0.01) as running,
        relay(running.process.port) as link,
        GenerationClient(f"127.0.0.1:{link.port}") as client,
        contextlib.aclosing(client.generate(_asking())) as outputs,
    ):
        await within(anext(outputs))
        await within(anext(outputs))
        await within(running.decode.asked.wait())
        link.cut()
        await within(running.decode.cancelled.wait())  # the window is over before the client comes back
        with pytest.raises(PeerUnreachable):
            await within(_rest(outputs))


def _asking() -> Any:
    return dataclasses.replace(request(), resumable=True)


async def _rest(outputs: Any) -> list[Output]:
    return [output async for output in outputs]
