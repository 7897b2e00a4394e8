"""What the frontend measures. Stage names are those of `StageTimes`."""

import dataclasses

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import SECONDS_BUCKETS, TOKENS_BUCKETS
from services.common.queue_metrics import QueueMetrics
from services.common.types import StageTimes, Usage
from services.frontend.fallback import Fallback
from services.frontend.routing.shortcut import Shortcut

_STAGES = tuple(field.name.removesuffix("_ns") for field in dataclasses.fields(StageTimes))
_NS = 1e-9


class FrontendMetrics:
    """The frontend's metrics in one registry; `queue` is for whoever keeps requests waiting."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = QueueMetrics("frontend", registry)
        self._requests = Counter(
            "baton_frontend_requests", "Requests by how they ended: ok, or an error's class.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._routes = Counter(
            "baton_frontend_routes", "Routes taken: split, prefill_only or decode_only.", ["kind"], registry=registry
        )
        self._moves = Counter(
            "baton_frontend_moves", "Requests that went on with other workers, by replay (no token yet) or migration.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self._not_moved = Counter(
            "baton_frontend_moves_refused",
            "Requests that might not go on elsewhere, by reason: max_moves, retry_budget, failed_steps or deadline.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "baton_frontend_fallbacks", "Routes on which decode had to run the prompt itself, by reason.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._shortcuts = Counter(
            "baton_frontend_shortcuts",
            "Routes on which decode ran the prompt itself by choice: short_prompt, cached_prompt or busy_prefill.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self._hedges = Counter(
            "baton_frontend_hedges", "Late requests tried over a second route, which won or lost.", ["result"],
            registry=registry,
        )  # fmt: skip
        self._resumes = Counter(
            "baton_frontend_resumes", "Calls that went on with an answer: ok, or unknown where none was kept.",
            ["result"], registry=registry,
        )  # fmt: skip
        self._dropped = Counter(
            "baton_frontend_resumable_requests_dropped",
            "Resumable requests stopped in work: window over, withdrawn by the client, or draining.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge("baton_frontend_inflight_requests", "Requests in work now.", registry=registry)
        self._ttft = _seconds("time_to_first_token", "Request received until first token sent.", registry)
        self._itl = _seconds("inter_token", "Time between two tokens of a stream.", registry)
        self._e2e = _seconds("request", "Request received until its end, whichever way.", registry)
        self._stages = Histogram(
            "baton_frontend_stage_seconds", "Time in each stage of a finished request.", ["stage"],
            buckets=SECONDS_BUCKETS, registry=registry,
        )  # fmt: skip
        self._prompt_tokens = _tokens("prompt", "Prompt tokens of a finished request.", registry)
        self._completion_tokens = _tokens("completion", "Tokens emitted for a finished request.", registry)
        self._duplicate_tokens = Counter(
            "baton_frontend_duplicate_tokens", "Tokens that both legs delivered; the second was dropped.",
            registry=registry,
        )  # fmt: skip
        self._conflicts = Counter(
            "baton_frontend_merge_conflicts", "Requests whose legs disagreed about a token.", registry=registry
        )

    def began(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def ended(self, outcome: str, stages: StageTimes) -> None:
        """A request is over; `outcome` is ok or the name of its error."""
        self._in_flight.dec()
        self._requests.labels(outcome).inc()
        self._e2e.observe(stages.total_ns * _NS)
        if stages.ttft_ns:
            self._ttft.observe(stages.ttft_ns * _NS)

    def routed(self, kind: str, fallback: Fallback, shortcut: Shortcut) -> None:
        """A route was taken, as a fallback or a shortcut or not."""
        self._routes.labels(kind).inc()
        if fallback is not Fallback.NONE:
            self._fallbacks.labels(fallback.value).inc()
        if shortcut is not Shortcut.NONE:
            self._shortcuts.labels(shortcut.value).inc()

    def moved(self, kind: str) -> None:
        """A request goes on with other workers; `kind` is replay or migration."""
        self._moves.labels(kind).inc()

    def not_moved(self, reason: str) -> None:
        """A request failed that might not go on elsewhere."""
        self._not_moved.labels(reason).inc()

    def hedged(self, result: str) -> None:
        """A late request was tried over a second route, too, which won or lost."""
        self._hedges.labels(result).inc()

    def resumed(self, result: str) -> None:
        """A call asked to go on with an answer; `result` is ok or unknown."""
        self._resumes.labels(result).inc()

    def dropped(self, reason: str) -> None:
        """A resumable request was stopped in work: window, withdrawn or draining."""
        self._dropped.labels(reason).inc()

    def token_gap(self, seconds: float) -> None:
        """Time from one token of a stream to the next."""
        self._itl.observe(seconds)

    def merged(self, duplicates: int) -> None:
        """A request's legs were merged, dropping so many tokens."""
        self._duplicate_tokens.inc(duplicates)

    def conflicted(self) -> None:
        """A request's legs did not fit together."""
        self._conflicts.inc()

    def completed(self, usage: Usage, stages: StageTimes) -> None:
        """A request finished well."""
        self._prompt_tokens.observe(usage.prompt_tokens)
        self._completion_tokens.observe(usage.completion_tokens)
        for stage in _STAGES:
            spent = getattr(stages, f"{stage}_ns")
            if spent:
                self._stages.labels(stage).observe(spent * _NS)


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"baton_frontend_{name}_seconds", text, buckets=SECONDS_BUCKETS, registry=registry)


def _tokens(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"baton_frontend_{name}_tokens", text, buckets=TOKENS_BUCKETS, registry=registry)
