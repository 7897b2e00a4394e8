"""Translates between `types.proto` and the plain types; the only place that does.

`*_from_proto` raise InvalidRequest where a message cannot stand for anything (an unset enum, a missing part); ranges
are checked where the values are used.
"""

import dataclasses
from typing import Any

from baton.v1 import types_pb2 as pb

from services.common.errors import FieldViolation, InvalidRequest
from services.common.flat import flat
from services.common.priority import Priority
from services.common.sampling import SamplingParams
from services.common.types import (
    ChoiceTokens,
    FinishReason,
    KvLayout,
    Load,
    SizedTime,
    StageTimes,
    Tier,
    Token,
    Usage,
    WorkerInfo,
)

_TIERS: "dict[Tier, pb.Tier.ValueType]" = {
    Tier.PREFILL: pb.TIER_PREFILL,
    Tier.DECODE: pb.TIER_DECODE,
    Tier.COLOCATED: pb.TIER_COLOCATED,
}
_FINISH_REASONS: "dict[FinishReason, pb.FinishReason.ValueType]" = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_TIERS_BACK = {value: key for key, value in _TIERS.items()}
KNOWN_TIERS = frozenset(_TIERS_BACK)
_FINISH_REASONS_BACK = {value: key for key, value in _FINISH_REASONS.items()}

_NOT_COUNTS = ("draining", "counters", "proven", "step_times", "handoff_times")
_LOAD_COUNTS = tuple(each.name for each in dataclasses.fields(Load) if each.name not in _NOT_COUNTS)
_OPTIONAL_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "n",
    "logprobs",
)


def sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    """Applies the defaults of the contract to what is unset; ranges are not checked here."""
    given = {name: getattr(message, name) for name in _OPTIONAL_SAMPLING if message.HasField(name)}
    return SamplingParams(
        **given,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logit_bias=dict(message.logit_bias),
    )


def sampling_to_proto(params: SamplingParams) -> pb.SamplingParams:
    """Every field is set, those that are None excepted."""
    given = {name: getattr(params, name) for name in _OPTIONAL_SAMPLING if getattr(params, name) is not None}
    return pb.SamplingParams(
        **given,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        logit_bias=params.logit_bias,
    )


def token_from_proto(message: pb.Token) -> Token:
    """One emitted token."""
    return Token(
        id=message.id,
        index=message.index,
        logprob=message.logprob if message.HasField("logprob") else None,
        top_logprobs=tuple((top.token_id, top.logprob) for top in message.top_logprobs),
    )


def token_to_proto(token: Token) -> pb.Token:
    """One emitted token."""
    return pb.Token(
        id=token.id,
        index=token.index,
        logprob=token.logprob,
        top_logprobs=[pb.TokenLogprob(token_id=token_id, logprob=value) for token_id, value in token.top_logprobs],
    )


def finish_from_proto(value: "pb.FinishReason.ValueType") -> FinishReason | None:
    """None stands for not ended."""
    return _FINISH_REASONS_BACK.get(value)


def finish_to_proto(reason: FinishReason | None) -> "pb.FinishReason.ValueType":
    """None stands for not ended."""
    return pb.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_REASONS[reason]


def priority_from_proto(value: "pb.Priority.ValueType") -> Priority:
    """Unset stands for normal.

    Raises:
        InvalidRequest: there is no such class.
    """
    try:
        return Priority(value or Priority.NORMAL)
    except ValueError:
        raise InvalidRequest(FieldViolation("priority", f"is {value}, must be low, normal or high")) from None


def priority_to_proto(priority: Priority) -> "pb.Priority.ValueType":
    """Class of a request."""
    return pb.Priority.ValueType(priority)


def choice_from_proto(message: pb.ChoiceTokens) -> ChoiceTokens:
    """New tokens of one choice."""
    tokens = tuple(token_from_proto(token) for token in message.tokens)
    return ChoiceTokens(message.choice_index, tokens, finish_from_proto(message.finish_reason))


def choice_to_proto(choice: ChoiceTokens) -> pb.ChoiceTokens:
    """New tokens of one choice."""
    return pb.ChoiceTokens(
        choice_index=choice.choice,
        tokens=[token_to_proto(token) for token in choice.tokens],
        finish_reason=finish_to_proto(choice.finish),
    )


def usage_from_proto(message: pb.Usage) -> Usage:
    """What a request used."""
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_tokens)


def usage_to_proto(usage: Usage) -> pb.Usage:
    """What a request used."""
    return pb.Usage(**flat(usage))


def stages_from_proto(message: pb.StageTimes) -> StageTimes:
    """Where a request's time went."""
    return StageTimes(**{field.name: getattr(message, field.name) for field in dataclasses.fields(StageTimes)})


def stages_to_proto(stages: StageTimes) -> pb.StageTimes:
    """Where a request's time went."""
    return pb.StageTimes(**flat(stages))


def layout_from_proto(message: pb.KvLayout) -> KvLayout:
    """Layout of a worker's KV."""
    fields: dict[str, Any] = {field.name: getattr(message, field.name) for field in dataclasses.fields(KvLayout)}
    fields["transports"] = tuple(message.transports)
    return KvLayout(**fields)


def layout_to_proto(layout: KvLayout) -> pb.KvLayout:
    """Layout of a worker's KV."""
    return pb.KvLayout(**flat(layout))


def tier_to_proto(tier: Tier) -> "pb.Tier.ValueType":
    """Which part of the race a worker runs."""
    return _TIERS[tier]


def tier_from_proto(value: "pb.Tier.ValueType") -> Tier | None:
    """None stands for unset, and for a tier that only a newer peer knows."""
    return _TIERS_BACK.get(value)


def worker_from_proto(message: pb.Worker, path: str = "worker") -> WorkerInfo:
    """One worker process; `path` names the message in errors.

    Raises:
        InvalidRequest: no id, incarnation, address or layout, or an unset tier.
    """
    missing = [name for name in ("worker_id", "incarnation", "address") if not getattr(message, name)]
    if message.tier not in _TIERS_BACK:
        missing.append("tier")
    if not message.HasField("layout"):
        missing.append("layout")
    if missing:
        raise InvalidRequest([FieldViolation(f"{path}.{name}", "must be set") for name in missing])
    return WorkerInfo(
        worker_id=message.worker_id,
        incarnation=message.incarnation,
        tier=_TIERS_BACK[message.tier],
        address=message.address,
        model=message.model,
        layout=layout_from_proto(message.layout),
        max_model_len=message.max_model_len,
        version=message.version,
        total_blocks=message.total_blocks,
        max_num_seqs=message.max_num_seqs,
        weight=message.weight or 1.0,
    )


def worker_to_proto(worker: WorkerInfo) -> pb.Worker:
    """One worker process."""
    return pb.Worker(
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        tier=_TIERS[worker.tier],
        address=worker.address,
        model=worker.model,
        layout=layout_to_proto(worker.layout),
        max_model_len=worker.max_model_len,
        version=worker.version,
        total_blocks=worker.total_blocks,
        max_num_seqs=worker.max_num_seqs,
        weight=worker.weight,
    )


def load_from_proto(message: pb.Load) -> Load:
    """How busy a worker is."""
    return Load(
        **{name: getattr(message, name) for name in _LOAD_COUNTS},
        draining=message.draining,
        counters=dict(message.counters),
        proven=tuple(message.proven.incarnations) if message.HasField("proven") else None,
        step_times=tuple(SizedTime(each.tokens, each.time_ns) for each in message.step_times),
        handoff_times=tuple(SizedTime(each.tokens, each.time_ns) for each in message.handoff_times),
    )


def load_to_proto(load: Load) -> pb.Load:
    """How busy a worker is."""
    facts = flat(load)
    facts |= {name: [pb.SizedTime(**flat(each)) for each in facts[name]] for name in ("step_times", "handoff_times")}
    proven = facts.pop("proven")
    return pb.Load(**facts, proven=None if proven is None else pb.ProvenChannels(incarnations=proven))
