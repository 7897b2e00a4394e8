"""Sets up the export of spans; without an endpoint none is made, and traces are only passed on (`rpc/tracing.py`)."""

import importlib
from collections.abc import Callable

from opentelemetry import trace

from services.common.config import ConfigError
from services.common.version import version

_FLUSH_MS = 2_000


def configure_tracing(endpoint: str, service: str, **attributes: str) -> Callable[[], None]:
    """Exports spans over OTLP/gRPC to `endpoint`; empty exports none. Call it once, at the start.

    Gives what flushes and ends the export (within a few seconds; call it last).

    Raises:
        ConfigError: an endpoint is set but the SDK is not installed.
    """
    if not endpoint:
        return _nothing
    try:
        resources = importlib.import_module("opentelemetry.sdk.resources")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    except ModuleNotFoundError as error:
        message = f"otlp_endpoint is {endpoint}, but {error.name} is not installed"
        raise ConfigError(f"{message}; install baton[otel] or leave the endpoint empty") from error
    resource = resources.Resource.create({"service.name": service, "service.version": version(), **attributes})
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = otlp.OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def close() -> None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()

    return close


def _nothing() -> None:
    return None
