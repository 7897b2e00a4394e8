"""Spans of the RPCs that serve requests, as an exporter sees them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from baton.v1 import prefill_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from services.common.errors import QueueFull
from services.common.rpc import tracing
from services.common.rpc.stages import set_stage_metadata
from services.common.types import StageTimes
from tests.harness.rpc import PREFILL, ScriptedPrefill, running_server
from tests.harness.tiers import until

SECRET = "the user's own words"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Keeps every finished span."""
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    yield found
    provider.shutdown()


async def served(prefill: ScriptedPrefill, **headers: str) -> None:
    """One Prefill with a request id, whatever comes of it; the server has finished with it afterwards."""
    async with running_server(prefill) as running:
        request = prefill_pb2.PrefillRequest(request_id="r-1")
        call = running.prefill.Prefill(request, timeout=10, metadata=tuple(headers.items()))
        await asyncio.gather(call, return_exceptions=True)
        await running.server.stop(5)


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


async def test_a_request_is_a_span_of_its_callers_trace(exporter: InMemorySpanExporter):
    """With ids, code and stages under the names that metadata and metrics use."""

    async def answer(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        set_stage_metadata(context, StageTimes(queue_ns=5, prefill_ns=7))
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = answer
    await served(prefill, traceparent=f"00-{7:032x}-{9:016x}-01")
    span = only(exporter)
    assert span.name == f"{PREFILL}/Prefill"
    assert span.context is not None
    assert span.context.trace_id == 7
    assert span.parent is not None
    assert span.parent.span_id == 9
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": PREFILL,
        "rpc.method": "Prefill",
        "baton.request_id": "r-1",
        "baton.stage.queue_ns": 5,
        "baton.stage.prefill_ns": 7,
        "rpc.grpc.status_code": 0,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [(QueueFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED), (KeyError(SECRET), grpc.StatusCode.INTERNAL)],
)
async def test_a_failed_request_is_a_failed_span(
    error: Exception, code: grpc.StatusCode, exporter: InMemorySpanExporter
):
    """With the code, and without what the exception says."""

    async def fail(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        raise error

    prefill = ScriptedPrefill()
    prefill.behaviour = fail
    await served(prefill)
    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["rpc.grpc.status_code"] == code.value[0]
    assert SECRET not in span.to_json()


async def test_a_caller_that_leaves_is_no_failure(exporter: InMemorySpanExporter):
    """The span ends as cancelled."""

    async def slow(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        await asyncio.wait_for(asyncio.Event().wait(), 30)
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = slow
    async with running_server(prefill) as running:
        call = running.prefill.Prefill(prefill_pb2.PrefillRequest(), timeout=30)
        await until(lambda: prefill.calls == 1)
        call.cancel()
        await until(lambda: bool(exporter.get_finished_spans()))
    span = only(exporter)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]


async def test_calls_that_serve_no_request_make_no_span(exporter: InMemorySpanExporter):
    """Health checks would drown everything else, and watches never end."""
    async with running_server() as running:
        await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        await running.server.stop(5)
    assert exporter.get_finished_spans() == ()
