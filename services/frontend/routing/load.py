"""Policies that look at load alone: fewest requests, and tokens over both tiers. Pure."""

from collections.abc import Callable, Mapping, Sequence

from services.common.types import Tier
from services.frontend.routing.candidate import Candidate
from services.frontend.routing.need import Need
from services.frontend.routing.policy import Cost


class LeastLoad:
    """Takes the worker that a measure says is least loaded; it keeps nothing in mind."""

    def __init__(self, measure: Callable[[Candidate, Need], Cost]) -> None:
        self._measure = measure

    def costs(self, among: Sequence[Candidate], need: Need) -> list[Cost]:
        """The least load first."""
        return [self._measure(candidate, need) for candidate in among]

    def picked(self, chosen: Candidate, among: Sequence[Candidate], need: Need) -> None:
        """Nothing to note: the next snapshot has it."""

    def counts(self) -> Mapping[str, int]:
        """Nothing of its own."""
        return {}


def least_requests() -> LeastLoad:
    """The fewest unfinished requests for its weight, the new one included."""
    return LeastLoad(lambda candidate, _: ((candidate.requests + 1) / candidate.weight,))


def token_aware(tier: Tier) -> LeastLoad:
    """Tokens that wait for a prefill worker; slots and KV blocks in use of a decode worker."""
    return LeastLoad(token_cost_of(tier))


def token_cost_of(tier: Tier) -> Callable[[Candidate, Need], Cost]:
    """The measure of `token_aware`."""
    return _prefill_cost if tier is Tier.PREFILL else _decode_cost


def _prefill_cost(candidate: Candidate, need: Need) -> Cost:
    return ((candidate.outstanding_tokens + need.prompt_tokens) / candidate.weight,)


def _decode_cost(candidate: Candidate, need: Need) -> Cost:
    return (
        candidate.pressure(need.prompt_tokens) / candidate.weight,
        candidate.outstanding_tokens / candidate.weight,
    )
