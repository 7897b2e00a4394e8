"""What happens around every RPC that this process serves.

Undecodable requests answer INVALID_ARGUMENT and name the field; typed errors become rich status; anything else that
escapes a servicer becomes INTERNAL with an opaque id, the log has the rest. Each call is counted and timed, its request
id and method are bound to the log context and its caller's trace context is made current. Cancellation by the caller
passes through.
"""

import asyncio
import contextlib
import inspect
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Mapping
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from services.common.errors import BatonError, FieldViolation, Internal, InvalidRequest, NotReady
from services.common.log import get_logger
from services.common.rpc.decode import WHOLE_MESSAGE, Undecodable, diagnose
from services.common.rpc.endings import Endings, LeftUnread
from services.common.rpc.gate import Gate
from services.common.rpc.metrics import RpcServerMetrics
from services.common.rpc.status import from_rpc_error, status_code, status_message, status_metadata
from services.common.rpc.tracing import remote_trace, request_span, set_span_status

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Any]
# Generic in its stubs only.
RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

MAX_LOGGED_ID_CHARS = 128

_log = get_logger(__name__)


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method; of those whose request is a stream only the ones that also answer with one (reflection)."""

    def __init__(self, metrics: RpcServerMetrics, gate: Gate, max_request_bytes: Mapping[str, int]) -> None:
        self._metrics = metrics
        self._gate = gate
        self._max_request_bytes = max_request_bytes
        self._endings = Endings()
        metrics.count_unread(lambda: len(self._endings))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["RpcHandler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "RpcHandler | None":
        """Gives the wrapped handler; None (unknown method, answered UNIMPLEMENTED by gRPC) stays None."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        refusal = self._gate.refusal(method, handler_call_details.invocation_metadata, self._metrics.in_flight)
        if refusal is not None:
            return grpc.stream_stream_rpc_method_handler(self._refuse(method, refusal))
        if handler.request_streaming and not handler.response_streaming:
            return handler
        most = self._max_request_bytes.get(method.strip("/").rpartition("/")[0], 0)
        deserializer = _diagnosing(handler.request_deserializer, most)
        if handler.request_streaming:
            both = self._around_stream(method, _read_decoded(handler.stream_stream))
            return grpc.stream_stream_rpc_method_handler(both, deserializer, handler.response_serializer)
        if handler.response_streaming:
            stream = self._around_stream(method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, deserializer, handler.response_serializer)
        unary = self._around_unary(method, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, deserializer, handler.response_serializer)

    def _around_unary(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            with self._observed(method, request, context):
                async with self._ending(context):
                    self._gate.count(method, context)
                    return await behaviour(_decoded(request), context)

        return call

    def _around_stream(self, method: str, behaviour: Behaviour) -> Behaviour:
        write_all = _write_generated(behaviour) if inspect.isasyncgenfunction(behaviour) else behaviour

        async def call(request: Any, context: Context) -> None:
            with self._observed(method, request, context):
                async with self._ending(context):
                    self._gate.count(method, context)
                    await write_all(_decoded(request), context)

        return call

    def _refuse(self, method: str, error: BatonError) -> Behaviour:
        """Answers before a byte of the request was read, which a handler of streams need not do."""

        async def call(_: Any, context: Context) -> None:
            with self._observed(method, None, context):
                async with self._ending(context):
                    raise error

        return call

    @contextlib.contextmanager
    def _observed(self, method: str, request: Any, context: Context) -> Generator[None]:
        started = time.monotonic()
        request_id = _request_id(request)
        code = grpc.StatusCode.OK
        self._metrics.begin()
        with (
            structlog.contextvars.bound_contextvars(**_log_context(method, request_id)),
            remote_trace(context.invocation_metadata()),
            request_span(method, request_id) as span,
        ):
            try:
                yield
            except (grpc.aio.AbortError, LeftUnread):
                code = _code_of(context)
                raise
            except BaseException:
                code = grpc.StatusCode.CANCELLED
                raise
            finally:
                set_span_status(span, code)
                self._metrics.observe(method, code.name, time.monotonic() - started)

    @contextlib.asynccontextmanager
    async def _ending(self, context: Context) -> AsyncGenerator[None, None]:
        """Ends the call with a status for whatever escapes the block; a cancelled call is left to gRPC.

        NOTE: gRPC sends no status at all when a servicer raises CancelledError although the caller is still there (it
        awaited something that was cancelled, or its task was): the caller would wait for its deadline.
        """
        try:
            yield
        except asyncio.CancelledError:
            if cast(Any, context).cancelled():
                raise
            withdrawn = "this server gave the call up, as it does when it stops; another worker may take it"
            await self._abort(context, NotReady(withdrawn))
        except grpc.aio.InternalError:
            raise  # the caller left while its answer was being written; gRPC ends the call
        except Exception as error:  # noqa: BLE001 - the last resort before gRPC's own
            await self._abort(context, error)

    async def _abort(self, context: Context, error: Exception) -> None:
        """Ends the call with the status of an error.

        Raises:
            AbortError: this is how gRPC ends a call.
            LeftUnread: the client does not read; the status waits for it.
        """
        if isinstance(error, grpc.aio.AbortError):
            raise error
        typed = _typed(error)
        metadata = [*(cast(Any, context).trailing_metadata() or ()), *status_metadata(typed)]
        await self._endings.end(context, status_code(typed), status_message(typed), tuple(metadata))


def _request_id(request: Any) -> str | None:
    """None for calls that do not serve a request, such as watches; empty where the id is yet to be made."""
    request_id: str | None = getattr(request, "request_id", None)
    return None if request_id is None else request_id[:MAX_LOGGED_ID_CHARS]


def _log_context(method: str, request_id: str | None) -> dict[str, str]:
    return {"method": method, "request_id": request_id} if request_id else {"method": method}


def _write_generated(generate: Behaviour) -> Behaviour:
    """Lets an async-generator servicer run inside a coroutine, closing it also when a write is cancelled."""

    async def write_all(request: Any, context: Context) -> None:
        async with contextlib.aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def _read_decoded(behaviour: Behaviour) -> Behaviour:
    """Lets a servicer that reads a stream of requests see only what could be decoded; the first other one ends it."""

    async def decoded(requests: AsyncIterable[Any]) -> AsyncGenerator[Any]:
        async for request in requests:
            yield _decoded(request)

    async def generate(requests: AsyncIterable[Any], context: Context) -> AsyncGenerator[Any]:
        async with contextlib.aclosing(decoded(requests)) as messages:
            async for response in behaviour(messages, context):
                yield response

    return generate


def _diagnosing(deserializer: Callable[[bytes], Any] | None, most: int) -> Callable[[bytes], Any] | None:
    """Makes a deserializer that never raises: gRPC would answer INTERNAL, for what is the client's mistake.

    More than `most` bytes are not even looked at; 0 stands for no limit.
    """
    if deserializer is None:
        return None
    descriptor = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)

    def decode(data: bytes) -> Any:
        if most and len(data) > most:
            return Undecodable(WHOLE_MESSAGE, f"has {len(data)} bytes, at most {most} are taken here")
        try:
            return deserializer(data)
        except DecodeError:
            if descriptor is None:
                return Undecodable(WHOLE_MESSAGE, "is not a valid message")
            return diagnose(data, descriptor)

    return decode


def _decoded(request: Any) -> Any:
    if isinstance(request, Undecodable):
        raise InvalidRequest(FieldViolation(request.field, request.description))
    return request


def _typed(error: Exception) -> BatonError:
    if isinstance(error, BatonError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error, "a peer")
    error_id = secrets.token_hex(8)
    _log.error("rpc_failed_unexpectedly", error_id=error_id, exc_info=error)
    return Internal(f"internal error {error_id}; the log of this server has the details", details={"id": error_id})


def _code_of(context: Context) -> grpc.StatusCode:
    """The code that a call was aborted with; gRPC holds it as a number."""
    number = cast(Any, context).code()
    for code in grpc.StatusCode:
        if number is code or number == code.value[0]:
            return code
    return grpc.StatusCode.UNKNOWN
