"""Settings of the frontend; flags, environment variables (BATON_FRONTEND_…) or a file."""

import enum

from pydantic import Field, field_validator, model_validator

from services.common.checkpoint import served_name
from services.common.ports import FRONTEND, metrics_port
from services.common.settings import ByteCount, Port, QueueSettings
from services.common.types import Tier
from services.frontend.answers import Keeping
from services.frontend.member_rules import MemberRules
from services.frontend.public_settings import PublicSettings
from services.frontend.reachability import Thresholds
from services.frontend.routing.ejection import EjectionRules
from services.frontend.routing.policies import PolicyChoice, PolicyName
from services.frontend.routing.slow_start import SlowStart
from services.frontend.rules import Rules
from services.kvtransfer.static_source import StaticWorker, parse_worker

PROG = "baton frontend"
ENV_PREFIX = "BATON_FRONTEND_"


class ConditionalDisaggregation(enum.Enum):
    """Whether decode may run a prompt that could be split."""

    AUTO = "auto"
    NEVER = "never"


class FrontendSettings(PublicSettings, QueueSettings):
    """Serves the public API and routes requests to prefill and decode workers."""

    port: Port = Field(FRONTEND, description="Port of the gRPC services; 0 takes a free one.")
    metrics_port: Port = Field(
        metrics_port(FRONTEND), description="Port of Prometheus metrics over HTTP; 0 serves none."
    )
    model: str = Field("", description="Checkpoint whose tokenizer is used: directory or hub id; empty: the demo.")
    served_model_name: str = Field("", max_length=256, description="Name that clients use; empty: that of the model.")
    workers: str = Field(
        "",
        description="Workers instead of a directory: tier=host:port, separated by commas; tiers are prefill, decode, "
        "colocated, and what the worker itself says counts. With tier=dns:host:port every address behind the name is a "
        "worker, resolved again and again.",
    )
    max_running_requests: int = Field(1024, ge=1, le=2**16, description="Requests in work at once; more wait.")
    max_waiting_requests: int = Field(1024, ge=0, le=2**16, description="Requests that may wait; more are refused.")
    default_deadline_s: float = Field(
        120.0, gt=0, le=86400, description="Seconds that a request gets whose client set no deadline."
    )
    max_deadline_s: float = Field(600.0, gt=0, le=86400, description="Most seconds that any request gets.")
    max_moves: int = Field(
        3, ge=0, le=100, description="Times that a request may go on with other workers when its own fail."
    )
    retry_ratio: float = Field(
        1.0, ge=0, le=10, description="Most moves in ten seconds, as a share of the requests that ran in them."
    )
    retries_per_s: float = Field(
        10.0, ge=0, le=1e6, description="Moves a second that are allowed on top, however few requests run."
    )
    stall_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds without a token after which a begun request moves; 0 never."
    )
    hedge_factor: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Tries a second route where the first token takes so many times as long as 95 % of the latest "
        "requests of that size took; 0 never.",
    )
    resume_window_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that a resumable request goes on without its client; 0 keeps none."
    )
    resume_buffer_tokens: int = Field(
        4096, ge=1, le=2**20, description="Tokens kept for a resumable request before and after what its client read."
    )
    max_kept_answers: int = Field(256, ge=1, le=2**16, description="Resumable requests at once; more are plain ones.")
    heartbeat_s: float = Field(
        0.5, ge=0.1, le=60, description="Seconds within which a worker that lives reports its load."
    )
    failure_threshold: int = Field(
        3, ge=1, le=100, description="Missed heartbeats or broken watches in a row that make a worker unreachable."
    )
    recovery_threshold: int = Field(
        2, ge=1, le=100, description="Load reports in a row that make an unreachable worker reachable again."
    )
    pair_grace_s: float = Field(
        3.0,
        ge=0,
        le=600,
        description="Seconds that a pair without a proven channel is still used where no pair is proven; then decode "
        "workers run prompts alone.",
    )
    max_prompt_bytes: ByteCount = Field(
        2 * 2**20, ge=1, description="Largest prompt, as UTF-8 text; KiB and MiB are understood."
    )
    stream_buffer_events: int = Field(
        64, ge=2, le=4096, description="Messages of the workers that one stream holds for a client that reads slowly."
    )
    prefill_policy: PolicyName = Field(
        PolicyName.TOKEN_AWARE, description="How prefill workers are chosen; docs/routing.md says when to use which."
    )
    decode_policy: PolicyName = Field(
        PolicyName.TOKEN_AWARE, description="How decode and colocated workers are chosen; as for prefill."
    )
    conditional_disaggregation: ConditionalDisaggregation = Field(
        ConditionalDisaggregation.AUTO,
        description="Whether decode runs short or mostly cached prompts itself where that is quicker: auto goes by "
        "what the workers measure, never splits every prompt.",
    )
    session_load_factor: float = Field(
        1.25, ge=1, le=100, description="Times its fair share of requests at which a session's own worker is passed by."
    )
    slow_start_s: float = Field(
        0.0, ge=0, le=3600, description="Seconds in which a worker that has come grows into its share; 0: at once."
    )
    eject_failures: int = Field(
        5, ge=0, le=1000, description="Failures in a row after which a worker is left out for a time; 0: never."
    )
    eject_failure_rate: float = Field(
        0.5, gt=0, le=1, description="Share of failed requests at which a worker is left out, where there were enough."
    )
    eject_window_s: float = Field(30.0, gt=0, le=3600, description="Seconds over which that share is taken.")
    eject_least_requests: int = Field(20, ge=1, le=10**6, description="Requests in that time that are enough.")
    eject_first_s: float = Field(
        5.0, gt=0, le=3600, description="Seconds that a worker is left out for the first time; then twice as long."
    )
    eject_longest_s: float = Field(120.0, gt=0, le=86400, description="Most seconds that a worker is left out.")
    eject_most_share: float = Field(
        0.5, ge=0, le=1, description="Most of a tier that may be left out at once; the last worker never is."
    )
    tokenizer_threads: int = Field(2, ge=1, le=64, description="Threads that tokenize.")
    max_waiting_texts: int = Field(256, ge=1, le=2**16, description="Texts that may wait for the tokenizer.")

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: str) -> str:
        parse_workers(value)
        return value

    @model_validator(mode="after")
    def _check_source(self) -> "FrontendSettings":
        if self.workers and self.directory:
            raise ValueError("workers and directory exclude each other; set one of them")
        return self

    @property
    def model_name(self) -> str:
        """Name under which the model is served; made as the workers make theirs."""
        return served_name(self.model, self.served_model_name)

    @property
    def rules(self) -> Rules:
        """The numbers by which requests are run."""
        return Rules(
            buffer_events=self.stream_buffer_events,
            max_moves=self.max_moves,
            stall_timeout_s=self.stall_timeout_s,
            hedge_factor=self.hedge_factor,
        )

    @property
    def policies(self) -> PolicyChoice:
        """The policy of each tier."""
        return PolicyChoice(
            prefill=self.prefill_policy,
            decode=self.decode_policy,
            session_load_factor=self.session_load_factor,
            has_shortcuts=self.conditional_disaggregation is ConditionalDisaggregation.AUTO,
        )

    @property
    def member_rules(self) -> MemberRules:
        """When workers are used: heard of, not failing, and warm."""
        thresholds = Thresholds(
            heartbeat_s=self.heartbeat_s,
            failures=self.failure_threshold,
            recoveries=self.recovery_threshold,
            pair_grace_s=self.pair_grace_s,
        )
        ejection = EjectionRules(
            failures=self.eject_failures,
            failure_rate=self.eject_failure_rate,
            window_s=self.eject_window_s,
            least_requests=self.eject_least_requests,
            first_s=self.eject_first_s,
            longest_s=self.eject_longest_s,
            most_share=self.eject_most_share,
        )
        return MemberRules(
            thresholds=thresholds,
            ejection=ejection,
            slow_start=SlowStart(self.slow_start_s),
            watched_tiers=self.policies.needs_blocks,
        )

    @property
    def keeping(self) -> Keeping:
        """What is kept for clients that may come back."""
        return Keeping(
            window_s=self.resume_window_s, max_answers=self.max_kept_answers, tokens=self.resume_buffer_tokens
        )

    @property
    def static_workers(self) -> tuple[StaticWorker, ...]:
        """The fixed workers, if any."""
        return parse_workers(self.workers)


def parse_workers(text: str) -> tuple[StaticWorker, ...]:
    """Reads `prefill=host:port,decode=dns:host:port`.

    Raises:
        ValueError: says what of it cannot be read.
    """
    return tuple(_parse_worker(entry.strip()) for entry in text.split(",") if entry.strip())


def _parse_worker(entry: str) -> StaticWorker:
    tier, sign, address = entry.partition("=")
    tiers = {each.value: each for each in Tier}
    if not sign or tier not in tiers:
        raise ValueError(f"{entry!r} is not tier=host:port with tier one of {', '.join(tiers)}")
    return parse_worker(tiers[tier], address)
