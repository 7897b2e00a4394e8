"""The server of the in-memory gRPC: finds the handler, passes the interceptors, runs it in its process's context."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from tests.harness.memory_call import MemoryCall, Trailing

if TYPE_CHECKING:
    from tests.harness.memory_rpc import Network

Continuation = Callable[[Any], Awaitable[Any]]


class MemoryServer:
    """As `grpc.aio.Server`; `process` is whom it belongs to."""

    def __init__(self, network: "Network", process: str, interceptors: Sequence[Any]) -> None:
        self.process = process
        self._network = network
        self._interceptors = interceptors
        self._handlers: list[Any] = []
        self._calls: set[MemoryCall] = set()
        self._context = contextvars.copy_context()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """As gRPC's."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The generic handlers serve them already."""

    def add_insecure_port(self, address: str) -> int:
        """As gRPC's."""
        host, _, port = address.rpartition(":")
        return self._network.listen(self, host, int(port))

    async def start(self) -> None:
        """It serves from the moment it has a port."""

    async def stop(self, grace: float | None) -> None:
        """As gRPC's: takes no new calls, lets the running ones finish, cuts the rest."""
        self._network.leave(self)
        running = [call.serving for call in self._calls if call.serving is not None]
        if running and grace:
            await asyncio.wait(running, timeout=grace)
        for call in list(self._calls):
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server stops")

    def serve(self, call: MemoryCall) -> None:
        """Runs a call."""
        self._calls.add(call)
        serving = asyncio.get_running_loop().create_task(self._serve(call), context=self._context.copy())
        call.serving = serving
        serving.add_done_callback(lambda _: self._calls.discard(call))

    async def _serve(self, call: MemoryCall) -> None:
        context = MemoryContext(call)
        try:
            await call.travel(call)
            await self._handle(call, context)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            call.settle(grpc.StatusCode.CANCELLED, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - as gRPC does
            context.set_code(grpc.StatusCode.UNKNOWN)
            context.set_details(f"Unexpected {type(error)}: {error}")
        await call.travel(call)
        call.settle(context.code(), context.details(), context.trailing_metadata())

    async def _handle(self, call: MemoryCall, context: "MemoryContext") -> None:
        find: Continuation = self._find
        for interceptor in reversed(self._interceptors):
            find = _intercepted(interceptor, find)
        handler = await find(_Details(call.method, call.metadata))
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        request = handler.request_deserializer(call.request)
        context.serialize = handler.response_serializer
        if not handler.response_streaming:
            await context.write(await handler.unary_unary(request, context))
            return
        result = handler.unary_stream(request, context)
        if not hasattr(result, "__aiter__"):
            await result
            return
        async for message in result:
            await context.write(message)

    async def _find(self, details: Any) -> Any:
        return next((found for each in self._handlers if (found := each.service(details)) is not None), None)


class MemoryContext:
    """As `grpc.aio.ServicerContext`."""

    serialize: Callable[[Any], bytes]

    def __init__(self, call: MemoryCall) -> None:
        self._call = call
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: Trailing = ()

    async def write(self, message: Any) -> None:
        """As gRPC's."""
        data = self.serialize(message)
        await self._call.travel(self._call)
        await self._call.deliver(data)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """As gRPC's."""
        self._code, self._details = code, details
        self._trailing = tuple(trailing_metadata or self._trailing)
        raise grpc.aio.AbortError

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Nobody here reads it."""

    def set_trailing_metadata(self, metadata: Any) -> None:
        """As gRPC's."""
        self._trailing = tuple(metadata)

    def trailing_metadata(self) -> Trailing:
        """As gRPC's."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """As gRPC's."""
        return self._call.metadata

    def time_remaining(self) -> float | None:
        """As gRPC's."""
        deadline = self._call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def cancelled(self) -> bool:
        """As gRPC's: the caller has gone."""
        return self._call.is_withdrawn

    def done(self) -> bool:
        """As gRPC's."""
        return self._call.done()

    def code(self) -> grpc.StatusCode:
        """As gRPC's."""
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        """As gRPC's."""
        self._code = code

    def details(self) -> str:
        """As gRPC's."""
        return self._details

    def set_details(self, details: str) -> None:
        """As gRPC's."""
        self._details = details

    def peer(self) -> str:
        """As gRPC's."""
        return f"memory:{self._call.parties[0]}"

    def auth_context(self) -> dict[str, Any]:
        """As gRPC's, of a connection without TLS."""
        return {}


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = metadata


def _intercepted(interceptor: Any, find: Continuation) -> Continuation:
    async def intercept(details: Any) -> Any:
        return await interceptor.intercept_service(find, details)

    return intercept
