"""The client side of gRPC: deadlines, dead peers, cancellation."""

import asyncio
import socket
import time
from typing import Any

import grpc
import pytest
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from opentelemetry import context as otel_context
from opentelemetry import trace

from services.common.errors import DeadlineExceeded, NotReady, PeerIncompatible, PeerUnreachable, Retry
from services.common.rpc.channel import deadline_of, open_channel, rpc_errors, timeout_left
from services.common.rpc.tracing import trace_metadata
from tests.harness.rpc import PEER, PREFILL, ScriptedPrefill, running_server


async def wait_for_release(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
    await asyncio.wait_for(asyncio.Event().wait(), 30)
    return prefill_pb2.PrefillResponse()


async def test_nobody_listens():
    """A refused connection is PeerUnreachable, at once, and names the peer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    channel = open_channel(address)
    try:
        with pytest.raises(PeerUnreachable, match="prefill-7"), rpc_errors("prefill-7"):
            await channel.unary_unary(f"/{PREFILL}/Prefill")(b"", timeout=10)
    finally:
        await channel.close()


async def test_a_peer_that_accepts_and_never_speaks():
    """Is PeerUnreachable long before the call's deadline."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        channel = open_channel(f"127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        try:
            with pytest.raises(PeerUnreachable), rpc_errors(PEER):
                await channel.unary_unary(f"/{PREFILL}/Prefill")(b"", timeout=60)
        finally:
            await channel.close()
    assert time.monotonic() - started < 30


async def test_the_deadline_reaches_the_server_and_ends_the_call():
    """The servicer sees what is left; the caller gets DeadlineExceeded."""
    left: list[float] = []

    async def look(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        left.append(deadline_of(context, default_s=99) - time.monotonic())
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = look
    async with running_server(prefill) as running:
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=40)
        prefill.behaviour = wait_for_release
        with pytest.raises(DeadlineExceeded), rpc_errors(PEER):
            await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=0.3)
    assert 0 < left[0] < 41  # gRPC sends a timeout in steps of a hundredth of it, rounded up


async def test_a_call_without_a_deadline_gets_the_default():
    """No wait without an end: the server's default stands in."""
    left: list[float] = []

    async def look(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        left.append(deadline_of(context, default_s=5) - time.monotonic())
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = look
    async with running_server(prefill) as running:
        await running.prefill.Prefill(prefill_pb2.PrefillRequest())
    assert 4 < left[0] <= 5


async def test_cancellation_of_the_caller_is_never_converted():
    """A cancelled task sees CancelledError, and the servicer is cancelled too."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def hold(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        entered.set()
        try:
            return await wait_for_release(request, context)
        finally:
            ended.set()

    prefill = ScriptedPrefill()
    prefill.behaviour = hold
    async with running_server(prefill) as running:

        async def call() -> None:
            with rpc_errors(PEER):
                await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=20)

        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await ended.wait()


async def test_a_channel_closed_under_a_call_is_an_unreachable_peer():
    """The task was not cancelled, so it must not see a cancellation."""
    entered = asyncio.Event()

    async def hold(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        entered.set()
        return await wait_for_release(request, context)

    prefill = ScriptedPrefill()
    prefill.behaviour = hold
    async with running_server(prefill) as running:
        channel = open_channel(f"127.0.0.1:{running.port}")
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)

        async def call() -> None:
            with rpc_errors(PEER):
                await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=20)

        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await entered.wait()
            await channel.close()
            with pytest.raises(PeerUnreachable):
                await task
        with pytest.raises(PeerUnreachable, match="closed"), rpc_errors(PEER):
            await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=20)


async def test_a_server_that_stops_ends_its_calls_as_unreachable():
    """Whatever the server was doing, the caller gets an error that sends it to another worker."""
    entered = asyncio.Event()

    async def hold(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        entered.set()
        return await wait_for_release(request, context)

    prefill = ScriptedPrefill()
    prefill.behaviour = hold
    async with running_server(prefill) as running:

        async def call() -> None:
            with rpc_errors(PEER):
                await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=20)

        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await entered.wait()
            await running.server.stop(0)
            with pytest.raises(PeerUnreachable):
                await task


async def test_another_kind_of_peer_is_incompatible():
    """A method that the peer does not serve says so by type."""
    async with running_server() as running:
        with pytest.raises(PeerIncompatible), rpc_errors(PEER):
            await running.channel.unary_unary("/baton.v1.DecodeService/Decode")(b"", timeout=10)


async def test_the_channel_reconnects_to_a_restarted_peer():
    """One channel serves over a restart at the same address."""
    async with running_server() as first:
        port = first.port
        channel = open_channel(f"127.0.0.1:{port}")
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
    try:
        async with running_server(port=port):
            request = prefill_pb2.PrefillRequest()
            await stub.Prefill(request, timeout=10, wait_for_ready=True)
    finally:
        await channel.close()


def test_no_time_left_is_deadline_exceeded():
    """The margin counts as time that is needed."""
    now = time.monotonic()
    assert 9 < timeout_left(now + 10) <= 10
    with pytest.raises(DeadlineExceeded):
        timeout_left(now + 1, margin_s=1.5)
    with pytest.raises(DeadlineExceeded):
        timeout_left(now - 1)


def test_the_current_trace_goes_out_as_metadata():
    """A peer continues the caller's trace; outside of a trace nothing is sent."""
    assert trace_metadata() == []
    span_context = trace.SpanContext(7, 9, is_remote=False, trace_flags=trace.TraceFlags(1))
    token = otel_context.attach(trace.set_span_in_context(trace.NonRecordingSpan(span_context)))
    try:
        assert trace_metadata() == [("traceparent", f"00-{7:032x}-{9:016x}-01")]
    finally:
        otel_context.detach(token)


def test_grpc_is_the_async_one():
    """The blocking channel is banned; the factory gives the asynchronous kind."""

    async def kind() -> type:
        channel = open_channel("127.0.0.1:1")
        await channel.close()
        return type(channel)

    assert asyncio.run(kind()).__module__.startswith(grpc.aio.__name__)


async def cancelled_future(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
    future: asyncio.Future[prefill_pb2.PrefillResponse] = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


async def cancelled_task(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return await wait_for_release(request, context)


@pytest.mark.parametrize("behaviour", [cancelled_future, cancelled_task])
async def test_a_servicer_that_is_cancelled_by_its_own_side_answers(behaviour: Any):
    """Otherwise gRPC sends nothing and the caller waits for its deadline; another worker may be tried at once."""
    prefill = ScriptedPrefill()
    prefill.behaviour = behaviour
    started = time.monotonic()
    async with running_server(prefill) as running:
        with pytest.raises(NotReady) as caught, rpc_errors(PEER):
            await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=30)
    assert caught.value.retry is Retry.OTHER_WORKER
    assert time.monotonic() - started < 15
