"""Carries the W3C trace context and baggage over gRPC metadata, and makes one span for each RPC that serves a request.

Only the API of OpenTelemetry is used: without a configured SDK (`common/tracing.py`) no span is made, but the context
of a caller is still passed on, so Baton never cuts a trace. Spans hold ids, codes and times, never what users wrote.
"""

import contextlib
from collections.abc import Generator, Iterable

import grpc
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from services.common.types import StageTimes

_tracer = trace.get_tracer("baton")


def trace_metadata() -> list[tuple[str, str]]:
    """Metadata that makes a peer's spans children of the current one; empty outside of a trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())


@contextlib.contextmanager
def remote_trace(metadata: Iterable[tuple[str, str | bytes]] | None) -> Generator[None]:
    """Makes the caller's trace context current for the block; malformed headers are ignored, as W3C asks."""
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


@contextlib.contextmanager
def request_span(method: str, request_id: str | None) -> Generator[Span | None]:
    """A server span for a call that serves a request; none where `request_id` is None.

    Watches and other calls that last as long as a process would be spans that never end.
    """
    if request_id is None:
        yield None
        return
    service, _, name = method.strip("/").rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "baton.request_id": request_id}
    with _tracer.start_as_current_span(
        f"{service}/{name}",
        kind=SpanKind.SERVER,
        attributes=attributes,
        # What an exception says may quote a prompt.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def set_span_status(span: Span | None, code: grpc.StatusCode) -> None:
    """Notes how the call ended; a caller that left is no error of ours."""
    if span is None:
        return
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        span.set_status(StatusCode.ERROR, code.name)


def set_span_stages(stages: StageTimes) -> None:
    """Notes on the current span where the request's time went, under the same names as metadata and metrics."""
    span = trace.get_current_span()
    if span.is_recording():
        for name in StageTimes.__dataclass_fields__:
            if value := getattr(stages, name):
                span.set_attribute(f"baton.stage.{name}", value)
