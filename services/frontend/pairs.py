"""Which pairs of a prefill and a decode worker may be routed to. Pure: told the time.

A decode worker reports the prefill processes to which it has a channel that a real transfer has proven. Only such pairs
are used. A channel takes a moment to open, though: where no pair at all is proven, one whose channel has been missing
for less than the grace is used as well, and decode waits for the channel. After the grace decode runs prompts itself,
which is counted and logged, for it is not what a deployment with prefill workers is meant to do.

A decode worker that opens channels with the first handoff, because nobody told it of its peers, reports none at all;
its pairs count as proven.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.types import Tier
from services.frontend.routing.candidate import Candidate

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Usable:
    """What may be used: all pairs but the `closed` ones.

    `overdue` are those that should be proven by now and are not; `is_blocked` where no pair is left because of them.
    """

    closed: frozenset[Pair]
    overdue: frozenset[Pair] = frozenset()
    is_blocked: bool = False


class Pairs:
    """Remembers since when each pair of processes has lacked a proven channel."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[Pair, float] = {}

    def usable(self, candidates: Sequence[Candidate], refused: frozenset[Pair], now: float) -> Usable:
        """Decides about every pair of the candidates, given by worker ids; `now` is in seconds and never goes back."""
        found = _compatible(candidates, refused)
        unproven = {_ids(*pair): _processes(*pair) for pair in found if not _is_proven(*pair)}
        self._since = {key: self._since.get(key, now) for key in unproven.values()}
        overdue = frozenset(pair for pair, key in unproven.items() if now - self._since[key] >= self._grace_s)
        if any(_is_proven(*pair) for pair in found if not _is_draining(*pair)):
            return Usable(refused | unproven.keys(), overdue)
        return Usable(refused | overdue, overdue, is_blocked=bool(overdue) and len(overdue) == len(found))


def _compatible(candidates: Sequence[Candidate], refused: frozenset[Pair]) -> list[tuple[Candidate, Candidate]]:
    prefills = [candidate for candidate in candidates if candidate.worker.tier is Tier.PREFILL]
    decodes = [candidate for candidate in candidates if candidate.worker.tier is Tier.DECODE]
    return [(prefill, decode) for prefill in prefills for decode in decodes if _ids(prefill, decode) not in refused]


def _is_proven(prefill: Candidate, decode: Candidate) -> bool:
    proven = decode.load.proven
    return proven is None or prefill.worker.incarnation in proven


def _is_draining(prefill: Candidate, decode: Candidate) -> bool:
    return prefill.load.draining or decode.load.draining


def _ids(prefill: Candidate, decode: Candidate) -> Pair:
    return prefill.worker.worker_id, decode.worker.worker_id


def _processes(prefill: Candidate, decode: Candidate) -> Pair:
    return prefill.worker.incarnation, decode.worker.incarnation
