"""Translates between `prefill.proto` and the plain types."""

from baton.v1 import prefill_pb2 as pb

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
from services.common.types import PrefillResult, WorkRequest


def request_from_proto(message: pb.PrefillRequest, deadline: float) -> WorkRequest:
    """A prompt to run; ranges are checked by the worker."""
    return WorkRequest(
        request_id=message.request_id,
        token_ids=tuple(message.token_ids),
        sampling=sampling_from_proto(message.sampling),
        deadline=deadline,
        cache_salt=message.cache_salt,
        priority=priority_from_proto(message.priority),
        ticket_id=message.ticket_id,
    )


def request_to_proto(request: WorkRequest) -> pb.PrefillRequest:
    """A prompt to run; the deadline travels with the call."""
    return pb.PrefillRequest(
        request_id=request.request_id,
        ticket_id=request.ticket_id,
        token_ids=request.token_ids,
        sampling=sampling_to_proto(request.sampling),
        cache_salt=request.cache_salt,
        priority=priority_to_proto(request.priority),
    )


def result_from_proto(message: pb.PrefillResponse) -> PrefillResult:
    """A prompt that has run."""
    return PrefillResult(
        first_tokens=tuple(choice_from_proto(choice) for choice in message.first_tokens),
        usage=usage_from_proto(message.usage),
        stages=stages_from_proto(message.stages),
        worker_id=message.worker_id,
    )


def result_to_proto(result: PrefillResult) -> pb.PrefillResponse:
    """A prompt that has run."""
    return pb.PrefillResponse(
        first_tokens=[choice_to_proto(choice) for choice in result.first_tokens],
        usage=usage_to_proto(result.usage),
        stages=stages_to_proto(result.stages),
        worker_id=result.worker_id,
    )
