"""A real server with a servicer whose behaviour a test sets, and raw calls to it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from baton.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.rpc.channel import open_channel
from services.common.rpc.limits import ServerLimits
from services.common.rpc.security import ServerSecurity
from services.common.rpc.server import NO_SECURITY, Binding, RpcServer

PREFILL = "baton.v1.PrefillService"
DECODE = "baton.v1.DecodeService"
PEER = "worker under test"

Context = grpc.aio.ServicerContext[Any, Any]


async def _empty(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
    return prefill_pb2.PrefillResponse()


class ScriptedPrefill(prefill_pb2_grpc.PrefillServiceServicer):
    """Answers as `behaviour` says, and keeps the last request."""

    def __init__(self) -> None:
        self.behaviour: Callable[[Any, Context], Awaitable[prefill_pb2.PrefillResponse]] = _empty
        self.calls = 0

    async def Prefill(self, request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        self.calls += 1
        return await self.behaviour(request, context)


class GeneratedDecode(decode_pb2_grpc.DecodeServiceServicer):
    """Streams as an async generator does."""

    def __init__(self, behaviour: Callable[[Any, Context], AsyncIterator[decode_pb2.DecodeResponse]]) -> None:
        self._behaviour = behaviour

    async def Decode(self, request: Any, context: Context) -> AsyncIterator[decode_pb2.DecodeResponse]:
        async with contextlib.aclosing(self._behaviour(request, context)) as responses:
            async for response in responses:
                yield response


class WrittenDecode(decode_pb2_grpc.DecodeServiceServicer):
    """Streams with `context.write`."""

    def __init__(self, behaviour: Callable[[Any, Context], Awaitable[None]]) -> None:
        self._behaviour = behaviour

    async def Decode(self, request: Any, context: Context) -> None:
        await self._behaviour(request, context)


class RunningServer:
    """A started server, a channel to it, and its metrics."""

    def __init__(self, server: RpcServer, port: int, registry: CollectorRegistry) -> None:
        self.server = server
        self.port = port
        self.registry = registry
        self.channel = open_channel(f"127.0.0.1:{port}")
        self.prefill = prefill_pb2_grpc.PrefillServiceStub(self.channel)
        self.decode = decode_pb2_grpc.DecodeServiceStub(self.channel)

    def count(self, service: str, method: str, code: str) -> float:
        """RPCs that the server has counted."""
        labels = {"service": service, "method": method, "code": code}
        return self.registry.get_sample_value("baton_rpc_server_requests_total", labels) or 0.0


@contextlib.asynccontextmanager
async def running_server(
    prefill: Any = None,
    decode: Any = None,
    *,
    port: int = 0,
    security: ServerSecurity = NO_SECURITY,
    **limits: float,
) -> AsyncIterator[RunningServer]:
    """Serves the given servicers on a free port of the loopback."""
    bindings = [Binding(PREFILL, prefill or ScriptedPrefill(), prefill_pb2_grpc.add_PrefillServiceServicer_to_server)]
    if decode is not None:
        bindings.append(Binding(DECODE, decode, decode_pb2_grpc.add_DecodeServiceServicer_to_server))
    registry = CollectorRegistry()
    allowed = ServerLimits(**limits)  # pyright: ignore[reportArgumentType]
    server = RpcServer("127.0.0.1", port, bindings, limits=allowed, security=security, registry=registry)
    running = RunningServer(server, await server.start(), registry)
    try:
        yield running
    finally:
        await running.channel.close()
        await server.stop(0)
