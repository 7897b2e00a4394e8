"""What the directory measures."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class DirectoryMetrics:
    """Counters of what happened, gauges of who is there."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registrations = Counter(
            "baton_kvtransfer_registrations_total", "Workers that joined or were replaced.", registry=registry
        )
        self.renewals = Counter("baton_kvtransfer_renewals_total", "Leases that were renewed.", registry=registry)
        self.expirations = Counter(
            "baton_kvtransfer_expirations_total", "Workers dropped because their lease ended.", registry=registry
        )
        self._members = Gauge("baton_kvtransfer_members", "Workers by tier.", ("tier",), registry=registry)
        self._refused = Gauge(
            "baton_kvtransfer_refused_pairs", "Pairs of workers that must not be routed together.", registry=registry
        )
        self._watchers = Gauge("baton_kvtransfer_watchers", "Watches that run now.", registry=registry)

    def show(self, stats: dict[str, int]) -> None:
        """Sets the gauges from the stats of the service."""
        for tier in ("prefill", "decode", "colocated"):
            self._members.labels(tier).set(stats[f"{tier}_workers"])
        self._refused.set(stats["refused_pairs"])
        self._watchers.set(stats["watchers"])
