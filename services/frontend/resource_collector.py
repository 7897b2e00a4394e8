"""Exports everything that a frontend owns to Prometheus, read when it is scraped."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ResourceCollector(Collector):
    """Reads counts at each scrape. Thread: the metrics endpoint's."""

    def __init__(self, counts: Callable[[], Mapping[str, int]], registry: CollectorRegistry) -> None:
        self._counts = counts
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Every count in one labelled gauge."""
        family = GaugeMetricFamily(
            "baton_frontend_resources",
            "Everything the frontend owns, by name; back to rest when idle.",
            labels=["name"],
        )
        for name, value in self._counts().items():
            family.add_metric([name], value)
        yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing: the name is unique, and collecting needs a whole process."""
        return iter(())
