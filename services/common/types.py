"""The nouns that cross process borders, as plain data.

Knows nothing of protobuf, gRPC or torch; `convert.py` turns these into wire messages and back.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.priority import Priority
from services.common.sampling import SamplingParams


class Tier(enum.Enum):
    """Which part of the race a worker runs."""

    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"


class FinishReason(enum.Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Token:
    """One emitted token; `index` is its position in the choice's output, from 0."""

    id: int
    index: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceTokens:
    """New tokens of one choice, in order, without gaps; `finish` comes with the last ones."""

    choice: int
    tokens: tuple[Token, ...]
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used; `cached` prompt tokens came out of a prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a request's time went, in nanoseconds; see `types.proto` for the borders of each stage."""

    queue_ns: int = 0
    prefill_ns: int = 0
    handoff_ns: int = 0
    admission_ns: int = 0
    decode_ns: int = 0
    ttft_ns: int = 0
    total_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """All that two workers must agree on, or convert, to hand KV over; see `types.proto`."""

    model_fingerprint: str
    dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    tensor_parallel: int = 1
    protocol_version: int = 1
    transports: tuple[str, ...] = ("gloo",)

    @property
    def token_elements(self) -> int:
        """Elements of KV that one token position takes, all layers, keys and values."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as the directory and its peers know it; `incarnation` names the process start."""

    worker_id: str
    incarnation: str
    tier: Tier
    address: str
    model: str
    layout: KvLayout
    max_model_len: int
    version: str
    total_blocks: int
    max_num_seqs: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SizedTime:
    """How long something of so many tokens takes, as measured."""

    tokens: int
    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a worker is at this moment, and how fast; see `types.proto` for each count."""

    waiting_requests: int = 0
    outstanding_tokens: int = 0
    running_requests: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    handoffs: int = 0
    channels: int = 0
    draining: bool = False
    counters: Mapping[str, int] = field(default_factory=dict[str, int])
    proven: tuple[str, ...] | None = None
    step_times: tuple[SizedTime, ...] = ()
    handoff_times: tuple[SizedTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    """Where the KV of a prompt comes from: a ticket at one incarnation of one prefill worker."""

    ticket_id: str
    worker_id: str
    incarnation: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest:
    """A validated request as a worker takes it.

    `ticket_id` (prefill tier) asks to keep the KV for a sink; `handoff` (decode tier) says where to fetch it, and None
    means that this worker runs the prompt itself. `emitted` (decode tier) has the output so far of every
    choice that goes on, where another worker began the request. `deadline` is on the monotonic clock, in seconds.
    `is_trial` where the worker itself made it to try its engine out; nobody's tokens are counted then.
    """

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    deadline: float
    cache_salt: str = ""
    priority: Priority = Priority.NORMAL
    ticket_id: str = ""
    handoff: Handoff | None = None
    emitted: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    is_trial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPair:
    """A prefill and a decode worker that cannot work together, and why."""

    prefill_worker_id: str
    decode_worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Everybody the directory knows at one revision, and the incarnations that fell silent towards it."""

    revision: int = 0
    workers: tuple[WorkerInfo, ...] = ()
    refused_pairs: tuple[RefusedPair, ...] = ()
    expired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillResult:
    """A prompt has run: the first token of every choice, with its finish reason where it is also the last."""

    first_tokens: tuple[ChoiceTokens, ...]
    usage: Usage
    stages: StageTimes
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSummary:
    """How a request went on its decode worker; `prefilled_tokens` counts prompt tokens that this worker ran itself."""

    usage: Usage
    stages: StageTimes
    prefilled_tokens: int
    preemptions: int
    received_bytes: int
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeEvent:
    """New tokens of a request; `summary` comes with the last event, and how many tokens came over a watch instead."""

    choices: tuple[ChoiceTokens, ...] = ()
    summary: DecodeSummary | None = None
    watched_tokens: int = 0
