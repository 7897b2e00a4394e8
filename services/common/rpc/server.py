"""The gRPC server that every process runs: health, reflection, limits, error mapping and metrics in one place.

Knows nothing of what the bound services do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server as add_reflection
from prometheus_client import CollectorRegistry

from services.common.config import ConfigError
from services.common.ports import join_address
from services.common.rate_limit import RateLimit
from services.common.rpc.gate import Gate
from services.common.rpc.health import LIVENESS, WHOLE_PROCESS, HealthServicer
from services.common.rpc.health_list import SERVICE as HEALTH
from services.common.rpc.health_list import add_list_to_server
from services.common.rpc.interceptor import RpcInterceptor
from services.common.rpc.limits import (
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    MAX_IDLE_RPCS,
    MAX_METADATA_BYTES,
    MIN_PING_INTERVAL_MS,
    ServerLimits,
)
from services.common.rpc.metrics import RpcServerMetrics
from services.common.rpc.mounts import Mounts
from services.common.rpc.security import ServerSecurity

DEFAULT_LIMITS = ServerLimits()
NO_SECURITY = ServerSecurity()

ReflectionServicer: Any = reflection.aio.ReflectionServicer  # the package's stubs do not know it


@dataclass(frozen=True, slots=True)
class Binding:
    """A servicer, its full name (package.Service) and the generated function that adds it to a server.

    `max_request_bytes` bounds each request, where that is less than the server's largest message; 0 does not.
    """

    full_name: str
    servicer: Any
    add_to_server: Callable[[Any, grpc.aio.Server], None]
    max_request_bytes: int = 0


class RpcServer:
    """One listening gRPC server.

    created ──start──▶ listening, not serving ──set_serving──▶ serving ──stop──▶ stopped

    Create and use it on one event loop. Every service starts as not serving in grpc.health.v1.
    """

    def __init__(
        self,
        host: str,
        port: int,
        bindings: Sequence[Binding],
        *,
        limits: ServerLimits = DEFAULT_LIMITS,
        security: ServerSecurity = NO_SECURITY,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._address = join_address(host, port)
        self._mounts = Mounts()
        self._health = HealthServicer([])
        self._security = security
        self._metrics = RpcServerMetrics(registry or CollectorRegistry(), security.stats)
        self._server = grpc.aio.server(
            interceptors=[RpcInterceptor(self._metrics, _gate(limits, security), _request_bytes(bindings))],
            options=_server_options(limits),
            maximum_concurrent_rpcs=limits.max_concurrent_rpcs + MAX_IDLE_RPCS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_list_to_server(self._health, self._server)
        mounts: Any = self._mounts
        self._server.add_generic_rpc_handlers((mounts,))
        self.mount(bindings)
        self._is_stopped = False

    def mount(self, bindings: Sequence[Binding]) -> None:
        """Serves these services instead of the present ones, for calls that come from now on; also while listening.

        An earlier servicer of another name still answers whoever calls it, and has to refuse; health and reflection do
        not know it any more. Until `set_serving` the new services are not serving.
        """
        names = [binding.full_name for binding in bindings]
        for binding in bindings:
            self._mounts.add(binding.add_to_server, binding.servicer)
        self._mounts.add(add_reflection, ReflectionServicer([*names, HEALTH, reflection.SERVICE_NAME]))
        self._health.replace(names)

    async def start(self) -> int:
        """Listens; gives the bound port.

        Raises:
            ConfigError: the address cannot be bound.
        """
        try:
            port = self._add_port(self._security.credentials())
        except RuntimeError as error:
            message = f"cannot listen on {self._address}: it is in use or not an address of this machine"
            raise ConfigError(f"{message}; choose another host or port") from error
        await self._server.start()
        return port

    def set_serving(self, is_serving: bool, service: str | None = None) -> None:
        """Tells health watchers; None stands for the process and all its services."""
        self._health.set(is_serving, service)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, lets running ones finish for `grace_s` seconds, cancels the rest; idempotent."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._health.set(False)
        self._health.close()
        await self._server.stop(grace_s)

    def stats(self) -> dict[str, int]:
        """Calls in flight and health watchers."""
        return {"rpcs_in_flight": self._metrics.in_flight, "health_watchers": self._health.num_watchers}

    def _add_port(self, credentials: grpc.ServerCredentials | None) -> int:
        if credentials is None:
            return self._server.add_insecure_port(self._address)
        return self._server.add_secure_port(self._address, credentials)


def _request_bytes(bindings: Sequence[Binding]) -> dict[str, int]:
    return {binding.full_name: binding.max_request_bytes for binding in bindings if binding.max_request_bytes}


def _gate(limits: ServerLimits, security: ServerSecurity) -> Gate:
    rate = RateLimit(limits.requests_per_s, limits.request_burst) if limits.requests_per_s else None
    return Gate(security.tokens, rate, limits.max_concurrent_rpcs)


def _server_options(limits: ServerLimits) -> list[tuple[str, int]]:
    bounds = {
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.max_connection_idle_ms": round(limits.idle_s * 1000),
        "grpc.max_connection_age_ms": round(limits.age_s * 1000),
        "grpc.max_connection_age_grace_ms": round(limits.age_grace_s * 1000) if limits.age_s else 0,
    }
    return [
        *((name, value) for name, value in bounds.items() if value),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_s * 1000)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # NOTE: without this one an unanswered ping is only given up after 60 s, whatever the option above says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # Two processes on one port would share its connections at random.
        ("grpc.so_reuseport", 0),
    ]


__all__ = ["LIVENESS", "WHOLE_PROCESS", "Binding", "RpcServer"]
