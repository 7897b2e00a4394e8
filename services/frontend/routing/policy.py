"""What a routing policy is: it gives each worker of a tier a cost. Pure."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.frontend.routing.candidate import Candidate
from services.frontend.routing.need import Need

# Compared part by part; the lowest wins, equals take turns.
Cost = tuple[float, ...]


class Policy(Protocol):
    """Ranks the workers of one tier that could all serve a request."""

    def costs(self, among: Sequence[Candidate], need: Need) -> list[Cost]:
        """What each of them would cost, in their order; changes nothing."""
        ...

    def picked(self, chosen: Candidate, among: Sequence[Candidate], need: Need) -> None:
        """Takes note that one of them was taken."""
        ...

    def counts(self) -> Mapping[str, int]:
        """What it has counted since the start, by name."""
        ...
