"""Prometheus metrics of a worker process that outlive its roles."""

from prometheus_client import CollectorRegistry, Counter

from services.common.types import Tier


class RoleSwitches:
    """Changes of a worker from one tier to another."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._switches = Counter(
            "baton_worker_role_switches_total",
            "Switches to another tier, by the tier asked for and whether it was taken (done) or not (rolled_back).",
            ["tier", "outcome"],
            registry=registry,
        )

    def observe(self, tier: Tier, outcome: str) -> None:
        """Counts a switch."""
        self._switches.labels(tier.value, outcome).inc()
