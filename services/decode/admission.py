"""Which requests a decode worker takes. Pure: reads limits, changes nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.common.errors import FieldViolation, InvalidRequest, KvPoolFull
from services.common.line import LineLimits
from services.common.types import WorkRequest
from services.common.validation import check_work_request

if TYPE_CHECKING:
    from services.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """Bounds of a decode worker; requests beyond them are shed.

    A seat is the right to a slot, now or soon: there are `seats_ahead` more of them than slots. Only who has a seat
    asks for its prompt's KV or runs its prompt here.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    seats_ahead: int
    queue_ttl_s: float
    priority_aging_s: float
    max_unread_tokens: int = 8192
    prefix_caching: bool = True

    @property
    def max_live(self) -> int:
        """Requests that the worker knows at once, waiting ones included."""
        return self.max_queued_requests + self.max_num_seqs + self.seats_ahead

    @property
    def seats(self) -> LineLimits:
        """Seats and the line for them."""
        return LineLimits(
            places=self.max_num_seqs + self.seats_ahead,
            max_waiting=self.max_queued_requests,
            ttl_s=self.queue_ttl_s,
            aging_s=self.priority_aging_s,
        )


def check_fit(request: WorkRequest, limits: DecodeLimits, engine: "Engine") -> None:
    """Checks that a request is valid and can ever be served here.

    Raises:
        InvalidRequest: names every field that is wrong.
        KvPoolFull: it may outgrow the pool, however empty.
    """
    model = engine.limits
    check_work_request(request, vocab_size=model.vocab_size, max_model_len=model.max_model_len)
    if request.sampling.n > limits.max_num_seqs:
        violation = f"is {request.sampling.n}, the worker has {limits.max_num_seqs} slots"
        raise InvalidRequest(FieldViolation("sampling.n", violation))
    longest = model.max_model_len
    if request.sampling.max_tokens is not None:
        longest = min(longest, len(request.token_ids) + request.sampling.max_tokens)
    blocks = -(-longest // engine.layout.block_size)
    if blocks > model.num_blocks:
        raise KvPoolFull(f"the request may need {blocks} KV blocks, the worker has {model.num_blocks}")
