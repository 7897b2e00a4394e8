"""Round robin, plain and weighted. Pure.

Every worker earns its weight with each pick and the one that is picked pays for all, so picks are spread evenly over
time and not in runs. Source: nginx's smooth weighted round robin.
"""

from collections.abc import Callable, Mapping, Sequence

from services.frontend.routing.candidate import Candidate
from services.frontend.routing.need import Need
from services.frontend.routing.policy import Cost


class Rotation:
    """Gives each worker its share of the requests, whatever they cost; `weigh` says how large that is."""

    def __init__(self, weigh: Callable[[Candidate], float]) -> None:
        self._weigh = weigh
        self._credit: dict[str, float] = {}

    def costs(self, among: Sequence[Candidate], need: Need) -> list[Cost]:
        """The most credit first."""
        return [(-self._credit_of(candidate),) for candidate in among]

    def picked(self, chosen: Candidate, among: Sequence[Candidate], need: Need) -> None:
        """All earn, one pays; whoever was not among them starts anew."""
        total = sum(map(self._weigh, among))
        self._credit = {candidate.worker_id: self._credit_of(candidate) for candidate in among}
        self._credit[chosen.worker_id] -= total

    def counts(self) -> Mapping[str, int]:
        """Nothing of its own."""
        return {}

    def _credit_of(self, candidate: Candidate) -> float:
        return self._credit.get(candidate.worker_id, 0.0) + self._weigh(candidate)


def round_robin() -> Rotation:
    """All workers alike, whatever their weights; a fresh one gets less until it is warm."""
    return Rotation(lambda candidate: candidate.ramp)


def weighted() -> Rotation:
    """Each by its weight."""
    return Rotation(lambda candidate: candidate.weight)
