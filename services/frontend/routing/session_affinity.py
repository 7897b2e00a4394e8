"""Keeps a session on one worker, where its earlier turns are cached, as long as that one is not overloaded. Pure.

Every session has an order of its own over the workers (weighted rendezvous hashing), so a worker that comes takes
sessions from all others alike, one that goes leaves its own to all others, and everybody else's stay where they are.
A session goes to the first worker of its order that has less than its bounded share of all requests. Sources: Thaler
and Ravishankar 1998; Mirrokni et al., "Consistent Hashing with Bounded Loads" (arXiv 1608.01350).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

from services.common.types import Tier
from services.frontend.routing.candidate import Candidate
from services.frontend.routing.load import token_cost_of
from services.frontend.routing.need import Need
from services.frontend.routing.policy import Cost

# A worker with fewer requests than this is not overloaded, however idle the others are.
UNBOUNDED_REQUESTS = 4
_HASH_BYTES = 8


class SessionAffinity:
    """Routes by session; requests without one go by tokens.

    `load_factor` is how many times its fair share of the requests a worker may have before sessions pass it by.
    """

    def __init__(self, tier: Tier, load_factor: float) -> None:
        self._token_cost = token_cost_of(tier)
        self._load_factor = load_factor
        self._at_home = 0
        self._elsewhere = 0

    def costs(self, among: Sequence[Candidate], need: Need) -> list[Cost]:
        """By the session's order, overloaded workers last."""
        if not need.session_id:
            return [self._token_cost(candidate, need) for candidate in among]
        return [
            (float(is_over), distance(need.session_id, candidate))
            for candidate, is_over in zip(among, self._overloaded(among), strict=True)
        ]

    def picked(self, chosen: Candidate, among: Sequence[Candidate], need: Need) -> None:
        """Counts whether the session got the first worker of its order."""
        if not need.session_id:
            return
        home = min(among, key=lambda candidate: distance(need.session_id, candidate))
        if home.worker_id == chosen.worker_id:
            self._at_home += 1
        else:
            self._elsewhere += 1

    def counts(self) -> Mapping[str, int]:
        """Requests whose session's own worker took them, and those that went to another."""
        return {"session_home": self._at_home, "session_elsewhere": self._elsewhere}

    def _overloaded(self, among: Sequence[Candidate]) -> list[bool]:
        """Who has its bounded share already; never all of them, for the shares add up to more than there is."""
        wanted = self._load_factor * (1 + sum(candidate.requests for candidate in among))
        weights = sum(candidate.weight for candidate in among)
        shares = (math.ceil(wanted * candidate.weight / weights) for candidate in among)
        return [c.requests >= max(UNBOUNDED_REQUESTS, share) for c, share in zip(among, shares, strict=True)]


def distance(session_id: str, candidate: Candidate) -> float:
    """Place of a worker in the session's order; the first to win by as much as its weight is larger."""
    key = f"{session_id}\0{candidate.worker_id}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=_HASH_BYTES).digest(), "little")
    return -math.log((drawn + 1) / (1 << 8 * _HASH_BYTES)) / candidate.weight
