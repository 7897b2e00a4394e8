"""Exports what routing has counted to Prometheus, read when it is scraped."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.types import Tier
from services.frontend.members import Members
from services.frontend.router import Router

_TIERS = (Tier.PREFILL, Tier.DECODE)
_COUNTS = {
    "session_home": "Requests whose session's own worker took them.",
    "session_elsewhere": "Requests that went to another worker than their session's own, which was overloaded or out.",
    "prefix_prompt_tokens": "Prompt tokens routed by prefix.",
    "prefix_matched_tokens": "Prompt tokens routed by prefix that the chosen worker seemed to have cached.",
}


class RoutingCollector(Collector):
    """Reads a router and the members at each scrape. Thread: the metrics endpoint's; it reads single counts."""

    def __init__(self, router: Router, members: Members, registry: CollectorRegistry) -> None:
        self._router = router
        self._members = members
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Picks, what policies counted, ejections."""
        picks = CounterMetricFamily(
            "baton_frontend_picks", "Workers picked, by tier and policy.", labels=["tier", "policy"]
        )
        for tier, count in self._router.picks().items():
            picks.add_metric([tier.value, self._router.choice.of(tier).value], count)
        yield picks
        for name, text in _COUNTS.items():
            family = CounterMetricFamily(f"baton_frontend_{name}", text, labels=["tier"])
            for tier in _TIERS:
                if name in (counts := self._router.counts(tier)):
                    family.add_metric([tier.value], counts[name])
            yield family
        yield from self._ejections()

    def _ejections(self) -> Iterator[Metric]:
        ejections = self._members.ejections
        text = "Times that a worker or a pair was left out for failing."
        yield CounterMetricFamily("baton_frontend_ejections", text, value=ejections.count)
        family = GaugeMetricFamily(
            "baton_frontend_ejected", "Workers and pairs left out now, or on probation.", labels=["kind"]
        )
        suspects = ejections.ejected()
        pairs = sum(isinstance(suspect, tuple) for suspect in suspects)
        family.add_metric(["worker"], len(suspects) - pairs)
        family.add_metric(["pair"], pairs)
        yield family
