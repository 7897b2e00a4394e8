"""Prometheus metrics of the prefill tier, besides its load."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.metrics import SECONDS_BUCKETS, TOKENS_BUCKETS
from services.common.queue_metrics import QueueMetrics
from services.common.types import PrefillResult


class PrefillMetrics:
    """Stage times and tokens of finished prompts; `queue` is for the worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = QueueMetrics("prefill", registry)
        self._prefill = Histogram(
            "baton_prefill_prefill_seconds",
            "First chunk scheduled until the first token is sampled.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._prompt = Histogram(
            "baton_prefill_prompt_tokens", "Tokens of a prompt.", buckets=TOKENS_BUCKETS, registry=registry
        )
        self._cached = Counter(
            "baton_prefill_cached_tokens_total", "Prompt tokens out of the prefix cache.", registry=registry
        )

    def observe(self, result: PrefillResult) -> None:
        """Counts a prompt that has run."""
        self._prefill.observe(result.stages.prefill_ns / 1e9)
        self._prompt.observe(result.usage.prompt_tokens)
        self._cached.inc(result.usage.cached_tokens)
