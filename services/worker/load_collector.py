"""Exports a worker's load and counts to Prometheus, read when they are scraped."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.types import Load
from services.common.worker_service import WorkerState

_GAUGES = {
    "waiting_requests": "Requests that wait for their first chunk or for blocks.",
    "outstanding_tokens": "Prompt tokens that still need a forward pass.",
    "running_requests": "Requests in the running batch.",
    "free_blocks": "KV blocks that can be allocated now.",
    "total_blocks": "KV blocks in all.",
    "handoffs": "Tickets that hold blocks (prefill) or reservations that wait for KV (decode).",
    "channels": "Open channels to peers.",
}
COUNTERS = {
    "prefilled_tokens": "Prompt tokens computed here.",
    "preemptions": "Requests that lost their blocks and were computed again.",
    "prefix_cache_queries": "Full prompt blocks looked up in the prefix cache.",
    "prefix_cache_hits": "Full prompt blocks found in the prefix cache.",
    "engine_steps": "Forward passes.",
    "moved_requests": "Requests sent on to other workers while the worker drained.",
    "source_tickets_expired_total": "Tickets whose lease ended before they were given back.",
    "source_aborts_total": "Tickets given back while their prompt computed or their KV was sent.",
    "sink_reservations_expired_total": "Reservations that ended because no KV came for a whole lease.",
    "sink_releases_total": "Tickets given back and acknowledged by their source.",
    "sink_releases_failed_total": "Tickets that could not be given back; their leases ended them.",
    "sink_messages_dropped_total": "Messages that came for a fetch that was over, and were not written.",
    "engine_turns": "Turns of the engine thread: commands taken, then at most one forward pass.",
}


class LoadCollector(Collector):
    """Reads a `WorkerState` at each scrape.

    Thread: the metrics endpoint's; it sees whole snapshots, for the worker replaces its report as one object.
    """

    def __init__(self, prefix: str, state: WorkerState, registry: CollectorRegistry) -> None:
        self._prefix = prefix
        self._state = state
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The load as gauges, the counts as counters, every other count in one labelled gauge."""
        load = self._state.load()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"{self._prefix}_{name}", text, value=getattr(load, name))
        for name, text in COUNTERS.items():
            if name in load.counters:
                yield CounterMetricFamily(f"{self._prefix}_{name}", text, value=load.counters[name])
        yield self._resources(load)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are unique by prefix, and collecting needs a started worker."""
        return iter(())

    def _resources(self, load: Load) -> Metric:
        family = GaugeMetricFamily(
            f"{self._prefix}_resources", "Everything the worker owns, by name; back to rest when idle.", labels=["name"]
        )
        for name, value in load.counters.items():
            if name not in COUNTERS:
                family.add_metric([name], value)
        return family
