"""What a decode worker says of a request at its end. Pure."""

from dataclasses import replace
from typing import TYPE_CHECKING

from services.common.types import DecodeSummary, StageTimes, Usage
from services.decode.messages import Progress

if TYPE_CHECKING:
    from services.kvtransfer.sink import Fetched


def summarize(usage: Usage, progress: Progress, fetched: "Fetched | None", worker_id: str) -> DecodeSummary:
    """Joins what the engine thread counted with what the sink measured; `fetched` is None where the prompt ran here."""
    return DecodeSummary(
        usage=replace(usage, cached_tokens=progress.cached_tokens if fetched is None else fetched.cached_tokens),
        stages=_local_stages(progress) if fetched is None else _handoff_stages(progress, fetched),
        prefilled_tokens=progress.prefilled_tokens,
        preemptions=progress.preemptions,
        received_bytes=0 if fetched is None else fetched.received_bytes,
        worker_id=worker_id,
    )


def _local_stages(progress: Progress) -> StageTimes:
    """Stages of a request whose prompt ran here."""
    decoding = progress.decoding_ns or progress.first_token_ns
    return StageTimes(
        queue_ns=progress.started_ns - progress.submitted_ns,
        prefill_ns=progress.first_token_ns - progress.started_ns,
        admission_ns=max(0, decoding - progress.first_token_ns),
        decode_ns=progress.ended_ns - decoding,
    )


def _handoff_stages(progress: Progress, fetched: "Fetched") -> StageTimes:
    """Stages of a request whose KV was handed over; queue and prefill are the prefill worker's."""
    return StageTimes(
        queue_ns=fetched.stages.queue_ns,
        prefill_ns=fetched.stages.prefill_ns,
        handoff_ns=fetched.handoff_ns,
        admission_ns=progress.decoding_ns - progress.joined_ns,
        decode_ns=progress.ended_ns - progress.decoding_ns,
    )
