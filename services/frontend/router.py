"""Picks the workers for a request. Pure: a snapshot of the workers in, a route out.

    left out   draining workers, those that cannot hold the request, pairs that do not fit, other weights than those
               that emitted its tokens
    last       workers that the request has failed on, then ejected ones, then decode workers without room now
    between    what the tier's policy says (`routing/policies.py`)
    equal      take turns

Knows nothing of how workers are found or called.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import KvPoolFull, NoWorker
from services.common.types import Tier
from services.frontend.routing.candidate import Candidate, Snapshot
from services.frontend.routing.need import Need
from services.frontend.routing.policies import PolicyChoice
from services.frontend.routing.shortcut import Shortcut, shortcut_of

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The workers of one request.

    Both: prefill, then hand over. No prefill: decode runs the prompt itself, by choice where it is a `shortcut`. No
    decode: the first token is all.
    `cached` has the prompt tokens that each of them is thought to have in its prefix cache, by worker id.
    """

    prefill: Candidate | None = None
    decode: Candidate | None = None
    shortcut: Shortcut = Shortcut.NONE
    cached: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def kind(self) -> str:
        """Which of the three: split, prefill_only or decode_only."""
        if self.prefill is None:
            return "decode_only"
        return "split" if self.decode is not None else "prefill_only"

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output that every worker of the route accepts, in tokens."""
        return min(part.worker.max_model_len for part in (self.prefill, self.decode) if part is not None)


class Router:
    """Applies a policy to each tier; its only state is theirs, and whose turn it is among equals."""

    def __init__(self, choice: PolicyChoice = PolicyChoice()) -> None:  # noqa: B008 - it is frozen
        self.choice = choice
        self._policies = {tier: choice.make(tier) for tier in (Tier.PREFILL, Tier.DECODE)}
        self._picks: Counter[Tier] = Counter()
        self._turn = 0

    def pick(self, need: Need, snapshot: Snapshot) -> Route:
        """Picks a route; never over a draining worker or a refused pair.

        Raises:
            NoWorker: nobody who is alive can serve the request now.
            KvPoolFull: workers are alive, but the prompt is larger than any of them can hold.
        """
        self._turn += 1
        live = [c for c in snapshot.candidates if not c.load.draining and _has_model(c, need.model)]
        able = [c for c in live if _can_hold(c, need)]
        prefills = [] if need.is_begun else self._ranked(Tier.PREFILL, _of_tier(able, Tier.PREFILL), need, snapshot)
        if need.is_first_token_last and prefills:
            return self._settle(need, prefills, Route(prefill=prefills[0]))
        decodes = self._ranked(Tier.DECODE, _of_tier(able, Tier.DECODE), need, snapshot)
        pairs = [(p, d) for d in decodes for p in _first_compatible(prefills, d, snapshot.refused)]
        if pairs:
            prefill, decode = min(pairs, key=lambda pair: max(_shunned(part, need, snapshot) for part in pair))
            return self._settle(need, prefills, self._split(prefill, decode, need), decodes)
        alone = self._ranked(Tier.DECODE, _of_tier(able, Tier.DECODE, Tier.COLOCATED), need, snapshot)
        if alone:
            return self._settle(need, prefills, Route(decode=alone[0]), alone)
        raise _no_route(need, live)

    def picks(self) -> Mapping[Tier, int]:
        """Workers picked since the start, by tier; one that runs a whole request was picked as a decode worker."""
        return self._picks

    def counts(self, tier: Tier) -> Mapping[str, int]:
        """What the policy of a tier has counted."""
        return self._policies[tier].counts()

    def _ranked(self, tier: Tier, among: Sequence[Candidate], need: Need, snapshot: Snapshot) -> list[Candidate]:
        """Best first; equals by turn."""
        count = len(among)
        costs = self._policies[tier].costs(among, need)

        def key(place: int) -> tuple[float, ...]:
            candidate = among[place]
            is_tight = tier is Tier.DECODE and candidate.free_blocks < candidate.blocks(need.prompt_tokens + 1)
            return (_shunned(candidate, need, snapshot), is_tight, *costs[place], (place - self._turn) % count)

        return [among[place] for place in sorted(range(count), key=key)]

    def _split(self, prefill: Candidate, decode: Candidate, need: Need) -> Route:
        """Over both workers, unless decode alone is the better choice, and has not failed the request."""
        if self.choice.has_shortcuts and decode.worker_id not in need.avoided:
            shortcut = shortcut_of(prefill, decode, need)
            if shortcut is not Shortcut.NONE:
                return Route(decode=decode, shortcut=shortcut)
        return Route(prefill=prefill, decode=decode)

    def _settle(
        self, need: Need, prefills: Sequence[Candidate], route: Route, decodes: Sequence[Candidate] = ()
    ) -> Route:
        cached: dict[str, int] = {}
        for tier, part, among in ((Tier.PREFILL, route.prefill, prefills), (Tier.DECODE, route.decode, decodes)):
            if part is not None:
                self._policies[tier].picked(part, among, need)
                self._picks[tier] += 1
                cached[part.worker_id] = part.cached_tokens(need.prefix)
        return replace(route, cached=cached)


def _shunned(candidate: Candidate, need: Need, snapshot: Snapshot) -> int:
    """How much better anybody else would be: 2 where the request failed there, 1 where others did, else 0."""
    return 2 * (candidate.worker_id in need.avoided) or int(candidate.worker_id in snapshot.ejected)


def _can_hold(candidate: Candidate, need: Need) -> bool:
    fits_pool = candidate.blocks(need.prompt_tokens + 1) <= candidate.total_blocks
    return fits_pool and max(need.prompt_tokens + 1, need.most_tokens) <= candidate.worker.max_model_len


def _has_model(candidate: Candidate, fingerprint: str) -> bool:
    return fingerprint in ("", candidate.worker.layout.model_fingerprint)


def _of_tier(candidates: Sequence[Candidate], *tiers: Tier) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.worker.tier in tiers]


def _first_compatible(
    prefills: Sequence[Candidate], decode: Candidate, refused: Collection[tuple[str, str]]
) -> Sequence[Candidate]:
    """The best prefill worker for a decode worker, if there is one."""
    found = (prefill for prefill in prefills if (prefill.worker_id, decode.worker_id) not in refused)
    return [best] if (best := next(found, None)) is not None else []


def _no_route(need: Need, live: Sequence[Candidate]) -> NoWorker | KvPoolFull:
    decodes = _of_tier(live, Tier.DECODE, Tier.COLOCATED)
    if not decodes:
        return NoWorker("no decode worker is alive and takes requests; try again later", retry_after_s=_RETRY_AFTER_S)
    most = max(c.total_blocks * c.worker.layout.block_size for c in decodes)
    return KvPoolFull(
        f"the prompt has {need.prompt_tokens} tokens and no decode worker has room for them "
        f"(the largest holds {most} tokens of KV); send a shorter one"
    )
