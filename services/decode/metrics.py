"""Prometheus metrics of the decode tier, besides its load."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.metrics import BYTES_BUCKETS, SECONDS_BUCKETS
from services.common.queue_metrics import QueueMetrics
from services.common.types import DecodeSummary

_STAGES = {
    "handoff": "First token sampled until all KV is verified in this worker's blocks.",
    "admission": "KV verified until the first decode step with the request.",
    "decode": "First decode step until the last token.",
}


class DecodeMetrics:
    """Stage times and tokens of finished requests; `queue` is for the worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = QueueMetrics("decode", registry)
        self._stages = {
            name: Histogram(f"baton_decode_{name}_seconds", text, buckets=SECONDS_BUCKETS, registry=registry)
            for name, text in _STAGES.items()
        }
        self._tokens = Counter("baton_decode_emitted_tokens_total", "Tokens emitted.", registry=registry)
        self._received = Histogram(
            "baton_decode_received_bytes",
            "KV bytes received for one request.",
            buckets=BYTES_BUCKETS,
            registry=registry,
        )

    def observe(self, summary: DecodeSummary) -> None:
        """Counts a request that has ended."""
        for name, histogram in self._stages.items():
            histogram.observe(getattr(summary.stages, f"{name}_ns") / 1e9)
        self._tokens.inc(summary.usage.completion_tokens)
        if summary.received_bytes:
            self._received.observe(summary.received_bytes)
