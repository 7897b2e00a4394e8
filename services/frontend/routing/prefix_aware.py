"""Sends a prompt where its beginning is in the prefix cache, unless the way there is longer than what it saves. Pure.

For prefill the cost is the number of tokens computed before the first one comes out: those that wait there, and those
of this prompt that are not cached. So a hit is worth just as much waiting as it saves computing, and without any hit
this is the token-aware policy. For decode, where a hit saves a transfer, a prompt that is all cached weighs as much as
a worker that is full.
"""

from collections.abc import Mapping, Sequence

from services.common.types import Tier
from services.frontend.routing.candidate import Candidate
from services.frontend.routing.need import Need
from services.frontend.routing.policy import Cost


class PrefixAware:
    """Weighs load against what a worker's prefix cache seems to hold; counts how often its guess was a hit."""

    def __init__(self, tier: Tier) -> None:
        self._is_prefill = tier is Tier.PREFILL
        self._matched = 0
        self._prompt = 0

    def costs(self, among: Sequence[Candidate], need: Need) -> list[Cost]:
        """The least work left first."""
        return [self._cost(candidate, need) for candidate in among]

    def picked(self, chosen: Candidate, among: Sequence[Candidate], need: Need) -> None:
        """Counts what should be cached there."""
        self._matched += chosen.cached_tokens(need.prefix)
        self._prompt += need.prompt_tokens

    def counts(self) -> Mapping[str, int]:
        """Prompt tokens routed, and those of them that the chosen worker was thought to have cached."""
        return {"prefix_prompt_tokens": self._prompt, "prefix_matched_tokens": self._matched}

    def _cost(self, candidate: Candidate, need: Need) -> Cost:
        missing = need.prompt_tokens - candidate.cached_tokens(need.prefix)
        waiting = candidate.outstanding_tokens + missing
        if self._is_prefill:
            return (waiting / candidate.weight,)
        pressure = candidate.pressure(missing) + missing / max(1, need.prompt_tokens)
        return pressure / candidate.weight, waiting / candidate.weight
