"""A client that stops reading its stream: it holds up nobody, and at the limit it holds nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from baton.v1 import decode_pb2, decode_pb2_grpc, generation_pb2_grpc, prefill_pb2, types_pb2

from services.common.errors import BatonError, Overloaded, SlowReader
from services.common.rpc import endings
from services.common.rpc.status import from_rpc_error
from services.common.types import Tier
from services.decode import reading
from services.frontend.convert import request_to_proto
from tests.harness.rpc import DECODE, Context, WrittenDecode, running_server
from tests.harness.scripted_frontend import cluster, ids_of, request
from tests.harness.scripted_workers import Script, eventually, within

# A window of the least size that never grows, so that little needs to be written until a client counts as slow.
SMALL_WINDOW = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.use_local_subchannel_pool", 1),
]
LARGE = decode_pb2.DecodeResponse(
    choices=[types_pb2.ChoiceTokens(tokens=[types_pb2.Token(id=token) for token in range(2000)])]
)
ANSWER = ids_of("the capital of France is Paris, and that of Italy is Rome.")
PIECE_LOGPROBS = 2000
UNREAD = "baton_rpc_server_unread"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "STATUS_WAIT_S", 0.05)


@contextlib.asynccontextmanager
async def narrow_channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=SMALL_WINDOW)
    try:
        yield channel
    finally:
        await channel.close()


async def end_of(call: Any) -> BatonError:
    """Reads a call to its end, which must be an error."""
    try:
        while await within(call.read()) is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, "server")
    raise AssertionError("the call ended well")


async def write_until_stuck(request: Any, context: Context) -> None:
    """Writes without end; a client that does not read for a moment is told off."""
    while True:
        try:
            async with asyncio.timeout(1.0):
                await context.write(LARGE)
        except TimeoutError:
            raise Overloaded("nobody reads") from None


async def test_a_call_that_nobody_reads_frees_its_place() -> None:
    """The handler of an unread stream ends and others are served; who reads on after all gets the status."""
    async with (
        running_server(decode=WrittenDecode(write_until_stuck), max_concurrent_rpcs=1) as running,
        narrow_channel(running.port) as channel,
    ):
        call = decode_pb2_grpc.DecodeServiceStub(channel).Decode(decode_pb2.DecodeRequest())
        await within(call.read())
        await eventually(lambda: running.count(DECODE, "Decode", "RESOURCE_EXHAUSTED") == 1)
        await eventually(lambda: running.server.stats()["rpcs_in_flight"] == 0)
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 1)
        await running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        assert isinstance(await end_of(call), Overloaded)
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 0)


async def test_an_unread_call_goes_with_its_client() -> None:
    """A client that leaves without having read takes along what was kept for it."""
    async with (
        running_server(decode=WrittenDecode(write_until_stuck)) as running,
        narrow_channel(running.port) as channel,
    ):
        call = decode_pb2_grpc.DecodeServiceStub(channel).Decode(decode_pb2.DecodeRequest())
        await within(call.read())
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 1)
        call.cancel()
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 0)


async def test_unread_calls_end_with_the_age_of_their_connection() -> None:
    """A client that stays and never reads is cut off at the age of its connection, and its grace."""
    decode = WrittenDecode(write_until_stuck)
    async with (
        running_server(decode=decode, age_s=2.5, age_grace_s=0.5) as running,
        narrow_channel(running.port) as channel,
    ):
        call = decode_pb2_grpc.DecodeServiceStub(channel).Decode(decode_pb2.DecodeRequest())
        await within(call.read())
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 1)
        await eventually(lambda: running.registry.get_sample_value(UNREAD) == 0)


async def test_a_client_that_stops_reading_is_ended_at_the_limit() -> None:
    """Decode is stopped, its place goes to the next request, and nothing of it is left; its status is CANCELLED."""
    script = Script(ANSWER)
    script.num_logprobs = PIECE_LOGPROBS
    script.end.clear()
    settings = {"slow_reader_timeout_s": 1.0, "max_running_requests": 1}
    async with cluster(script, **settings) as running, narrow_channel(running.process.port) as channel:
        asked = request_to_proto(request("hello", max_tokens=len(ANSWER), logprobs=20))
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(asked)
        await within(call.read())
        await within(running.decode.cancelled.wait())
        await running.idle()
        script.num_logprobs = 0
        script.end.set()
        assert await running.outputs("and then?", max_tokens=4)
        error = await running.fails(call)
        assert error.code() is grpc.StatusCode.CANCELLED
        assert "not read" in (error.details() or "")


async def test_a_client_that_leaves_too_many_tokens_unread_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker's tokens would be read no faster."""
    monkeypatch.setattr(reading, "MAX_UNREAD_TOKENS", 0)
    async with cluster(Script(ANSWER), (Tier.DECODE, Tier.DECODE), max_moves=2) as running:
        with pytest.raises(SlowReader, match="unread"):
            await running.outputs()
        assert sum(len(worker.requests) for worker in running.workers) == 1
