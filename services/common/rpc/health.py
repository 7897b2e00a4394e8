"""grpc.health.v1 with Check, Watch and List.

The servicer that grpcio ships does not serve List, and one watcher that leaves silences the others; hence this one.
The name "" stands for the whole process, `liveness` for whether it is alive, every other name for one gRPC service.
"""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as _health_pb2  # pyright: ignore[reportAttributeAccessIssue]
from grpc_health.v1 import health_pb2_grpc

from services.common.changes import Changes
from services.common.rpc.health_list import HealthListResponse

# The package ships no types.
health_pb2: Any = _health_pb2

WHOLE_PROCESS = ""
# Not serving only where nothing but a restart helps; all the others say whether the process is ready.
LIVENESS = "liveness"
MAX_WATCHERS = 256

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers with the states that `set` was given; all start as not serving, liveness alone as serving."""

    def __init__(self, services: list[str]) -> None:
        self._states = _not_serving(services)
        self._changes = Changes()
        self._watchers = 0

    @property
    def num_watchers(self) -> int:
        """Watch calls that run now."""
        return self._watchers

    def close(self) -> None:
        """Ends all watches, so that they do not hold up the server's stop; they get the last state first."""
        self._changes.close()

    def replace(self, services: list[str]) -> None:
        """Knows these services from now on, none of them serving."""
        self._states = {**_not_serving(services), LIVENESS: self._states[LIVENESS]}
        self._changes.notify()

    def set(self, is_serving: bool, service: str | None = None) -> None:
        """Sets one service, or the process and all services, not its liveness, where `service` is None."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if is_serving else states.NOT_SERVING
        for name in self._states.keys() - {LIVENESS} if service is None else (service,):
            self._states[name] = state
        self._changes.notify()

    async def Check(self, request: Any, context: Context) -> Any:
        """Answers NOT_FOUND for a service that is not served here."""
        if request.service not in self._states:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return health_pb2.HealthCheckResponse(status=self._states[request.service])

    async def List(self, request: Any, context: Context) -> Any:
        """Answers all states."""
        statuses = {name: health_pb2.HealthCheckResponse(status=state) for name, state in self._states.items()}
        return HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Context) -> None:
        """Streams the state, now and after every change; SERVICE_UNKNOWN for a service that is not served here."""
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many health watchers")
        self._watchers += 1
        try:
            await self._watch(request.service, context)
        finally:
            self._watchers -= 1

    async def _watch(self, service: str, context: Context) -> None:
        last: int | None = None
        while True:
            seen, is_last = self._changes.count, self._changes.is_closed
            state = self._states.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if state != last:
                await context.write(health_pb2.HealthCheckResponse(status=state))
                last = state
            if is_last:
                return
            await self._changes.wait(seen)


def _not_serving(services: list[str]) -> dict[str, int]:
    not_serving: int = health_pb2.HealthCheckResponse.NOT_SERVING
    serving: int = health_pb2.HealthCheckResponse.SERVING
    return {**dict.fromkeys([WHOLE_PROCESS, *services], not_serving), LIVENESS: serving}
