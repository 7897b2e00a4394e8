"""Translates between `decode.proto` and the plain types."""

from collections.abc import Mapping, Sequence

from baton.v1 import decode_pb2 as pb

from services.common.convert import (
    choice_from_proto,
    choice_to_proto,
    priority_from_proto,
    priority_to_proto,
    sampling_from_proto,
    sampling_to_proto,
    stages_from_proto,
    stages_to_proto,
    usage_from_proto,
    usage_to_proto,
)
from services.common.errors import FieldViolation, InvalidRequest
from services.common.types import ChoiceTokens, DecodeEvent, DecodeSummary, Handoff, WorkRequest
from services.common.validation import id_violations
from services.decode.place import Place

_HANDOFF_FIELDS = ("ticket_id", "worker_id", "incarnation", "address")


def request_from_proto(message: pb.DecodeRequest, deadline: float) -> WorkRequest:
    """A request to continue; ranges are checked by the worker.

    Raises:
        InvalidRequest: the handoff lacks a part, or has one that cannot be an id.
    """
    return WorkRequest(
        request_id=message.request_id,
        token_ids=tuple(message.token_ids),
        sampling=sampling_from_proto(message.sampling),
        deadline=deadline,
        cache_salt=message.cache_salt,
        priority=priority_from_proto(message.priority),
        handoff=_handoff_from_proto(message.handoff) if message.HasField("handoff") else None,
        emitted={part.choice_index: tuple(part.token_ids) for part in message.emitted},
    )


def request_to_proto(request: WorkRequest, place: Place | None = None) -> pb.DecodeRequest:
    """A request to continue, and where its tokens go; the deadline travels with the call."""
    handoff = request.handoff
    return pb.DecodeRequest(
        request_id=request.request_id,
        token_ids=request.token_ids,
        sampling=sampling_to_proto(request.sampling),
        cache_salt=request.cache_salt,
        priority=priority_to_proto(request.priority),
        handoff=None if handoff is None else pb.Handoff(**{n: getattr(handoff, n) for n in _HANDOFF_FIELDS}),
        emitted=[pb.EmittedTokens(choice_index=choice, token_ids=ids) for choice, ids in request.emitted.items()],
        watch_id="" if place is None else place.watch_id,
        watch_key=0 if place is None else place.key,
    )


def event_from_proto(message: pb.DecodeResponse) -> DecodeEvent:
    """New tokens."""
    return DecodeEvent(
        choices=tuple(choice_from_proto(choice) for choice in message.choices),
        summary=_summary_from_proto(message.summary) if message.HasField("summary") else None,
        watched_tokens=message.watched_tokens,
    )


def event_to_proto(event: DecodeEvent) -> pb.DecodeResponse:
    """New tokens."""
    return pb.DecodeResponse(
        choices=[choice_to_proto(choice) for choice in event.choices],
        summary=None if event.summary is None else _summary_to_proto(event.summary),
        watched_tokens=event.watched_tokens,
    )


def watched_from_proto(message: pb.WatchTokensResponse) -> list[tuple[int, tuple[ChoiceTokens, ...]]]:
    """New tokens by request."""
    return [(part.watch_key, tuple(choice_from_proto(choice) for choice in part.choices)) for part in message.requests]


def watched_to_proto(tokens: Mapping[int, Sequence[ChoiceTokens]]) -> pb.WatchTokensResponse:
    """New tokens by request."""
    return pb.WatchTokensResponse(
        requests=[
            pb.WatchedTokens(watch_key=key, choices=[choice_to_proto(choice) for choice in choices])
            for key, choices in tokens.items()
        ]
    )


def _handoff_from_proto(message: pb.Handoff) -> Handoff:
    missing = [name for name in _HANDOFF_FIELDS if not getattr(message, name)]
    if missing:
        raise InvalidRequest([FieldViolation(f"handoff.{name}", "must be set") for name in missing])
    violations = [
        wrong for name in _HANDOFF_FIELDS for wrong in id_violations(f"handoff.{name}", getattr(message, name))
    ]
    if violations:
        raise InvalidRequest(violations)
    return Handoff(**{name: getattr(message, name) for name in _HANDOFF_FIELDS})


def _summary_from_proto(message: pb.DecodeSummary) -> DecodeSummary:
    return DecodeSummary(
        usage=usage_from_proto(message.usage),
        stages=stages_from_proto(message.stages),
        prefilled_tokens=message.prefilled_tokens,
        preemptions=message.preemptions,
        received_bytes=message.received_bytes,
        worker_id=message.worker_id,
    )


def _summary_to_proto(summary: DecodeSummary) -> pb.DecodeSummary:
    return pb.DecodeSummary(
        usage=usage_to_proto(summary.usage),
        stages=stages_to_proto(summary.stages),
        prefilled_tokens=summary.prefilled_tokens,
        preemptions=summary.preemptions,
        received_bytes=summary.received_bytes,
        worker_id=summary.worker_id,
    )
