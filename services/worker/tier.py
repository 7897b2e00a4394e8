"""What a worker process runs: the worker of one tier, and what that is built from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from services.common.lifecycle import Fatal
from services.common.rpc.server import Binding
from services.common.settings import WorkerSettings
from services.common.types import Tier, WorkerInfo
from services.common.worker_service import WorkerState
from services.engine.engine import Engine
from services.worker.deep_check import Tried


class TierWorker(WorkerState, Tried, Protocol):
    """What a tier runs inside the process."""

    def bindings(self) -> Sequence[Binding]:
        """Its gRPC services."""
        ...

    async def start(self) -> None:
        """Starts threads and tasks."""
        ...

    async def settle(self, timeout_s: float) -> None:
        """Waits, at most so long, until what it needs of its peers of now is proven or has failed."""
        ...

    async def close(self) -> None:
        """Ends them, in whatever state; callers that still wait get a typed error. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a `TierWorker` is built from."""

    engine: Engine
    info: WorkerInfo
    fatal: Fatal
    registry: CollectorRegistry


Build = Callable[[Parts], TierWorker]
# How the tiers are built that a process may switch to, from the settings of the tier that it started with.
Roles = Mapping[Tier, Callable[[WorkerSettings, Parts], TierWorker]]
