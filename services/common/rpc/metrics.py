"""Counts and times of the RPCs that a process serves."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import SECONDS_BUCKETS

_LABELS = ("service", "method", "code")
_SECURITY_GAUGES = {
    "security_reloads": "Times that changed certificates or tokens were taken over since the start.",
    "security_reload_failures": "Times that changed certificates or tokens were wrong; the last good ones stay.",
}


class RpcServerMetrics:
    """Metrics by service, method and status code; one per registry."""

    def __init__(self, registry: CollectorRegistry, security_stats: Callable[[], Mapping[str, int]] = dict) -> None:
        self._requests = Counter(
            "baton_rpc_server_requests_total", "RPCs served, by final status.", _LABELS, registry=registry
        )
        self._seconds = Histogram(
            "baton_rpc_server_seconds",
            "Time from the first byte of a request to its final status.",
            _LABELS,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge("baton_rpc_server_in_flight", "RPCs that run now.", registry=registry)
        self._unread = Gauge(
            "baton_rpc_server_unread", "RPCs that are over and whose client does not read so.", registry=registry
        )
        self.in_flight = 0
        for name, meaning in _SECURITY_GAUGES.items():
            gauge = Gauge(f"baton_rpc_{name}", meaning, registry=registry)
            gauge.set_function(lambda name=name: security_stats().get(name, 0))

    def count_unread(self, count: Callable[[], int]) -> None:
        """Says where the number of unread RPCs comes from."""
        self._unread.set_function(count)

    def begin(self) -> None:
        """Counts an RPC that begins; every one must be ended with `observe`."""
        self.in_flight += 1
        self._in_flight.set(self.in_flight)

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one finished RPC; `method` is the full one, as in /package.Service/Method."""
        self.in_flight -= 1
        self._in_flight.set(self.in_flight)
        service, _, name = method.strip("/").rpartition("/")
        self._requests.labels(service, name, code).inc()
        self._seconds.labels(service, name, code).observe(seconds)
