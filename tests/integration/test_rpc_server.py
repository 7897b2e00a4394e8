"""The gRPC server that every process runs, over real sockets."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog
from baton.v1 import decode_pb2, prefill_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry import baggage, trace

from services.common.config import ConfigError
from services.common.errors import FieldViolation, InvalidRequest, QueueFull
from services.common.rpc.channel import rpc_errors
from services.common.rpc.health_list import SERVICE as HEALTH
from services.common.rpc.health_list import HealthListRequest, HealthListResponse
from services.common.rpc.server import LIVENESS, RpcServer
from services.common.rpc.stages import set_stage_metadata, stages_from_metadata
from services.common.types import StageTimes
from tests.harness.rpc import DECODE, PEER, PREFILL, GeneratedDecode, ScriptedPrefill, WrittenDecode, running_server
from tests.harness.tiers import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def statuses(running: Any) -> dict[str, int]:
    call = running.channel.unary_unary(
        f"/{HEALTH}/List",
        request_serializer=HealthListRequest.SerializeToString,
        response_deserializer=HealthListResponse.FromString,
    )
    listed = await call(HealthListRequest(), timeout=10)
    return {name: answer.status for name, answer in listed.statuses.items() if name != LIVENESS}


async def test_health_lists_every_service_and_starts_as_not_serving():
    """List works (the stock servicer lacks it), and nothing is ready before it is said to be."""
    async with running_server() as running:
        assert await statuses(running) == {"": NOT_SERVING, PREFILL: NOT_SERVING}
        running.server.set_serving(True)
        assert await statuses(running) == {"": SERVING, PREFILL: SERVING}
        running.server.set_serving(False, PREFILL)
        assert await statuses(running) == {"": SERVING, PREFILL: NOT_SERVING}


async def test_health_check_of_an_unknown_service_is_not_found():
    """As the health protocol asks."""
    async with running_server() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(running.channel).Check(
                health_pb2.HealthCheckRequest(service="x"), timeout=10
            )
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_health_watcher_that_leaves_does_not_silence_the_others():
    """Two watchers of one service; one goes; the other still hears the change."""
    async with running_server() as running:
        stub = health_pb2_grpc.HealthStub(running.channel)
        leaving = stub.Watch(health_pb2.HealthCheckRequest(service=PREFILL), timeout=10)
        staying = stub.Watch(health_pb2.HealthCheckRequest(service=PREFILL), timeout=10)
        assert (await leaving.read()).status == NOT_SERVING
        assert (await staying.read()).status == NOT_SERVING
        leaving.cancel()
        running.server.set_serving(True)
        assert (await staying.read()).status == SERVING


async def test_stop_tells_health_watchers_and_is_not_held_up_by_them():
    """A watcher hears NOT_SERVING and its stream ends, long before the grace does."""
    async with running_server() as running:
        running.server.set_serving(True)
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(30):
            await running.server.stop(grace_s=60)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF


async def test_reflection_names_all_services():
    """Tools such as grpcurl find the API without the protos."""
    async with running_server() as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {PREFILL, HEALTH} <= names


async def test_garbage_for_reflection_is_refused():
    """A stream of requests is decoded as carefully as a single one: INVALID_ARGUMENT, not UNKNOWN."""
    async with running_server() as running:
        call = running.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
            iter([b"\x1a\x7fshort"]), timeout=10
        )
        with pytest.raises(InvalidRequest), rpc_errors(PEER):
            await call.read()


async def test_callers_that_leave_while_they_are_refused_are_no_errors(caplog: pytest.LogCaptureFixture):
    """An answer that nobody waits for any more is neither logged as a bug nor answered twice."""
    async with running_server() as running:
        check = running.channel.unary_unary(f"/{HEALTH}/Check")
        unknown = health_pb2.HealthCheckRequest(service="x").SerializeToString()
        for turn in range(300):
            call = check(unknown, timeout=10)
            await asyncio.sleep(0.0002 * (turn % 10))
            call.cancel()
        await statuses(running)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_invalid_utf8_names_the_field():
    """The client's mistake is INVALID_ARGUMENT with the path, not INTERNAL, and the servicer is not called."""
    prefill = ScriptedPrefill()
    request = prefill_pb2.PrefillRequest(request_id="r")
    request.sampling.stop.extend(["fine", "abcd"])
    data = request.SerializeToString().replace(b"abcd", b"ab\xff\xfe")
    async with running_server(prefill) as running:
        raw = running.channel.unary_unary(f"/{PREFILL}/Prefill")
        with pytest.raises(InvalidRequest) as caught, rpc_errors(PEER):
            await raw(data, timeout=10)
        assert caught.value.violations == (FieldViolation("sampling.stop[1]", "is not valid UTF-8"),)
        await running.server.stop(5)
        await until(lambda: running.count(PREFILL, "Prefill", "INVALID_ARGUMENT") == 1)
    assert prefill.calls == 0


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\x05ab", b"\x22\x7f", b"\x07", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
async def test_garbage_is_the_request_that_is_wrong(data: bytes):
    """Truncated or senseless bytes answer INVALID_ARGUMENT."""
    async with running_server() as running:
        with pytest.raises(InvalidRequest) as caught, rpc_errors(PEER):
            await running.channel.unary_unary(f"/{PREFILL}/Prefill")(data, timeout=10)
        assert caught.value.violations[0].field == "request"


async def test_a_message_over_the_limit_is_refused_and_the_server_lives():
    """100 MB against a limit of 1 MiB: refused as a bad request, and the next call works."""
    prefill = ScriptedPrefill()
    async with running_server(prefill, max_message_bytes=2**20) as running:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=options) as channel:
            call = channel.unary_unary(f"/{PREFILL}/Prefill")(bytes(100_000_000), timeout=60)
            with pytest.raises(InvalidRequest, match="larger"), rpc_errors(PEER):
                await call
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
    assert prefill.calls == 1


async def test_calls_over_the_bound_are_shed_with_a_retry_hint():
    """At most `max_concurrent_rpcs` run; the next is told at once to come back."""
    entered, release = asyncio.Event(), asyncio.Event()

    async def hold(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        entered.set()
        await asyncio.wait_for(release.wait(), 30)
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = hold
    async with running_server(prefill, max_concurrent_rpcs=1) as running:
        first = running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        async with asyncio.timeout(30):
            await entered.wait()
        # Another connection, because the bound also holds for the streams of one.
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            with pytest.raises(QueueFull) as caught, rpc_errors(PEER):
                await channel.unary_unary(f"/{PREFILL}/Prefill")(b"", timeout=10)
        assert caught.value.retry_after_s
        release.set()
        await first


async def test_a_method_that_is_not_served_is_unimplemented():
    """An unknown method passes the interceptor untouched."""
    async with running_server() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.channel.unary_unary(f"/{PREFILL}/Nothing")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def generated(request: Any, context: Any) -> AsyncIterator[decode_pb2.DecodeResponse]:
    yield decode_pb2.DecodeResponse()
    raise QueueFull("full after one", retry_after_s=1.0)


async def written(request: Any, context: Any) -> None:
    await context.write(decode_pb2.DecodeResponse())
    raise QueueFull("full after one", retry_after_s=1.0)


@pytest.mark.parametrize("decode", [GeneratedDecode(generated), WrittenDecode(written)], ids=["generator", "writer"])
async def test_errors_of_a_stream_arrive_after_its_messages(decode: Any):
    """Both styles of streaming servicers are mapped and counted."""
    async with running_server(decode=decode) as running:
        call = running.decode.Decode(decode_pb2.DecodeRequest(), timeout=10)
        assert await call.read() == decode_pb2.DecodeResponse()
        with pytest.raises(QueueFull, match="full after one"), rpc_errors(PEER):
            await call.read()
        await running.server.stop(5)
        await until(lambda: running.count(DECODE, "Decode", "RESOURCE_EXHAUSTED") == 1)


async def test_a_client_that_leaves_closes_the_generator():
    """Cancelling a stream runs the servicer's cleanup at once, and it counts as cancelled."""
    closed = asyncio.Event()

    async def endless(request: Any, context: Any) -> AsyncIterator[decode_pb2.DecodeResponse]:
        try:
            yield decode_pb2.DecodeResponse()
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        finally:
            closed.set()

    async with running_server(decode=GeneratedDecode(endless)) as running:
        call = running.decode.Decode(decode_pb2.DecodeRequest(), timeout=10)
        await call.read()
        call.cancel()
        async with asyncio.timeout(30):
            await closed.wait()
        await running.server.stop(5)
        await until(lambda: running.count(DECODE, "Decode", "CANCELLED") == 1)
        assert running.server.stats()["rpcs_in_flight"] == 0


async def test_request_id_method_and_trace_reach_the_servicer():
    """The log context has the request's id, and the caller's W3C context and baggage are current."""
    seen: dict[str, Any] = {}

    async def look(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        seen.update(structlog.contextvars.get_contextvars())
        seen["trace_id"] = trace.get_current_span().get_span_context().trace_id
        seen["tenant"] = baggage.get_baggage("tenant")
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = look
    headers = (("traceparent", f"00-{7:032x}-{9:016x}-01"), ("baggage", "tenant=blue"))
    async with running_server(prefill) as running:
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(request_id="r-1"), metadata=headers, timeout=10)
    assert seen == {"method": f"/{PREFILL}/Prefill", "request_id": "r-1", "trace_id": 7, "tenant": "blue"}


@pytest.mark.parametrize("fails", [False, True])
async def test_stage_times_travel_in_trailing_metadata(fails: bool):
    """Also where the call then fails, beside the error's own details."""
    stages = StageTimes(queue_ns=1, prefill_ns=20, total_ns=300)

    async def answer(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        set_stage_metadata(context, StageTimes(queue_ns=99))
        set_stage_metadata(context, stages)
        if fails:
            raise QueueFull("full")
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = answer
    async with running_server(prefill) as running:
        call = running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
        assert stages_from_metadata(await call.trailing_metadata()) == stages


async def test_a_port_in_use_is_a_configuration_error():
    """The message names the address; two servers never share a port."""
    async with running_server() as running:
        second = RpcServer("127.0.0.1", running.port, [])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{running.port}"):
            await second.start()
        await second.stop(0)


async def test_an_unexpected_exception_is_logged_with_its_id(caplog: pytest.LogCaptureFixture):
    """The id that the caller gets leads to the log line."""

    async def bug(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        raise KeyError("a bug")

    prefill = ScriptedPrefill()
    prefill.behaviour = bug
    with structlog.testing.capture_logs() as logs, caplog.at_level(logging.CRITICAL):
        async with running_server(prefill) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
    (line,) = [log for log in logs if log["event"] == "rpc_failed_unexpectedly"]
    assert line["error_id"] in (caught.value.details() or "")
