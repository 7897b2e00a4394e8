"""A request so small that it costs nothing: shows that a worker's engine really runs."""

import secrets

from services.common.sampling import SamplingParams
from services.common.types import WorkRequest


def tiny_request(deadline: float) -> WorkRequest:
    """One token in, one token out; goes the way of every request, and leaves nothing in the prefix cache."""
    return WorkRequest(
        request_id=f"check-{secrets.token_hex(4)}",
        token_ids=(0,),
        sampling=SamplingParams(temperature=0.0, max_tokens=1),
        deadline=deadline,
        is_trial=True,
    )
