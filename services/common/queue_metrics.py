"""What every queue on a request's way measures, by the same names in each service."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.metrics import SECONDS_BUCKETS
from services.common.priority import Priority


class QueueMetrics:
    """One queue's waits and sheds in one registry; `service` is part of the names."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self._wait = Histogram(
            f"baton_{service}_queue_wait_seconds", "Wait of the requests that were admitted.", ["priority"],
            buckets=SECONDS_BUCKETS, registry=registry,
        )  # fmt: skip
        self._shed = Counter(
            f"baton_{service}_shed", "Requests turned away: full, displaced by a higher priority, or expired.",
            ["reason", "priority"], registry=registry,
        )  # fmt: skip

    def waited(self, priority: Priority, seconds: float) -> None:
        """A request was admitted."""
        self._wait.labels(priority.name.lower()).observe(seconds)

    def shed(self, priority: Priority, reason: str) -> None:
        """A request was turned away."""
        self._shed.labels(reason, priority.name.lower()).inc()
