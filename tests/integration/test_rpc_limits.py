"""What one server allows its clients, over real sockets."""

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.errors import InvalidRequest, PeerUnreachable, QueueFull, RateLimited
from services.common.rpc.channel import open_channel, rpc_errors
from services.common.rpc.server import Binding, RpcServer
from tests.harness.rpc import PREFILL, Context, RunningServer, ScriptedPrefill, running_server
from tests.harness.tiers import until


async def ask(running: RunningServer) -> None:
    with rpc_errors("server"):
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)


async def test_a_caller_that_asks_too_often_is_told_when_to_come_back() -> None:
    """Beyond the burst a call ends with RESOURCE_EXHAUSTED and RetryInfo, unseen by the servicer; health is free."""
    prefill = ScriptedPrefill()
    async with running_server(prefill, requests_per_s=0.1, request_burst=2) as running:
        await ask(running)
        await ask(running)
        with pytest.raises(RateLimited) as caught:
            await ask(running)
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s <= 10
        assert prefill.calls == 2
        await until(lambda: running.count(PREFILL, "Prefill", "RESOURCE_EXHAUSTED") == 1)
        await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


async def test_connections_are_bounded() -> None:
    """One connection too many is closed before its handshake; when another ends there is room again."""
    async with running_server(max_connections=1) as running:
        await ask(running)
        second = open_channel(f"127.0.0.1:{running.port}")
        stub = prefill_pb2_grpc.PrefillServiceStub(second)
        with pytest.raises(PeerUnreachable), rpc_errors("server"):
            await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        await running.channel.close()
        await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=20, wait_for_ready=True)
        await second.close()


async def test_streams_of_a_connection_are_bounded() -> None:
    """However many calls a client begins on one connection, the servicer sees no more at once than it may."""
    go_on, running_calls = asyncio.Event(), 0
    most = 0

    async def wait(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        nonlocal running_calls, most
        running_calls += 1
        most = max(most, running_calls)
        await go_on.wait()
        running_calls -= 1
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = wait
    async with running_server(prefill, max_streams=2) as running:
        calls = [asyncio.ensure_future(ask(running)) for _ in range(6)]
        await until(lambda: running_calls == 2)
        go_on.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert most == 2
    # The others wait in their client, or are refused where it did not know the limit yet: before anything was done.
    assert {type(outcome) for outcome in outcomes} <= {type(None), PeerUnreachable}
    assert prefill.calls == outcomes.count(None)


async def test_a_connection_that_has_reached_its_age_loses_no_call() -> None:
    """Clients move to a new connection on their own: a steady stream of calls sees no failure, however old one gets."""
    peers: set[str] = set()

    async def note(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        peers.add(context.peer())
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = note
    async with running_server(prefill, age_s=0.2, age_grace_s=5.0) as running, asyncio.timeout(30):
        channel = open_channel(f"127.0.0.1:{running.port}", repeats_unseen=True)
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        while len(peers) < 4:
            await asyncio.gather(*(stub.Prefill(prefill_pb2.PrefillRequest(), timeout=20) for _ in range(5)))
        await channel.close()


async def test_a_call_outlives_the_age_of_its_connection_by_the_grace_only() -> None:
    """Whoever never ends a call holds a connection no longer than age and grace together."""

    async def never(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        await asyncio.Event().wait()
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = never
    async with running_server(prefill, age_s=0.2, age_grace_s=0.2) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: running.server.stats()["rpcs_in_flight"] == 0)


async def test_an_idle_connection_is_closed() -> None:
    """A connection without calls ends by itself; the next call makes a new one."""
    peers: list[str] = []

    async def note(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        peers.append(context.peer())
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = note
    async with running_server(prefill, idle_s=0.2) as running:
        await ask(running)
        async with asyncio.timeout(20):
            while (state := running.channel.get_state()) is grpc.ChannelConnectivity.READY:
                await running.channel.wait_for_state_change(state)
        await ask(running)
    assert len(set(peers)) == 2


async def test_a_full_server_still_says_that_it_is_healthy() -> None:
    """Calls beyond the limit are refused with a hint to come back; a health check is not: busy is not dead."""
    go_on = asyncio.Event()

    async def wait(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        await go_on.wait()
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = wait
    async with running_server(prefill, max_concurrent_rpcs=1) as running:
        first = asyncio.ensure_future(ask(running))
        await until(lambda: prefill.calls == 1)
        with pytest.raises(QueueFull) as caught:
            await ask(running)
        assert caught.value.retry_after_s == 1.0
        await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        go_on.set()
        await first


async def test_a_service_that_is_told_little_takes_no_large_request() -> None:
    """A request beyond its service's bound is refused by name of the field, and the servicer never sees it."""
    prefill = ScriptedPrefill()
    binding = Binding(PREFILL, prefill, prefill_pb2_grpc.add_PrefillServiceServicer_to_server, 100)
    server = RpcServer("127.0.0.1", 0, [binding])
    running = RunningServer(server, await server.start(), CollectorRegistry())
    try:
        await ask(running)
        with pytest.raises(InvalidRequest, match="at most 100 are taken here"), rpc_errors("server"):
            await running.prefill.Prefill(prefill_pb2.PrefillRequest(request_id="x" * 100), timeout=10)
        assert prefill.calls == 1
    finally:
        await running.channel.close()
        await server.stop(0)


@pytest.mark.parametrize(
    "said", [b"", b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["nothing", "half", "no settings"]
)
async def test_a_connection_that_does_not_say_enough_is_closed(said: bytes) -> None:
    """Who connects and does not begin to speak HTTP/2 holds a connection for the time of a handshake only."""
    async with running_server(handshake_s=0.3) as running, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                pass
        writer.close()
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=20, wait_for_ready=True)
