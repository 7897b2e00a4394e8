"""Prompts that have no blocks yet: by rank, and by arrival where that is equal. Pure."""

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterator

from services.prefill.prompt import Prompt

_Place = tuple[float, int, Prompt]  # rank, arrival; no two arrivals are equal, so prompts are never compared


class WaitingPrompts:
    """Two lines, of those that somebody awaits and of the others: a plan need not look at those that cannot run.

    What joins or leaves is found by bisection and its tokens are summed up, so that nothing here walks the lines.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._arrivals = itertools.count()
        self._places: dict[int, _Place] = {}
        self._lines: dict[bool, list[_Place]] = {True: [], False: []}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, prompt: Prompt) -> None:
        """Puts a prompt behind those of its rank; no other one has its key."""
        place = (prompt.rank, next(self._arrivals), prompt)
        self._places[prompt.key] = place
        self.tokens += len(prompt.token_ids)
        bisect.insort(self._lines[prompt.is_awaited], place)

    def remove(self, key: int) -> None:
        """Takes a prompt out. Unknown keys are ignored."""
        place = self._places.pop(key, None)
        if place is not None:
            self.tokens -= len(place[2].token_ids)
            self._leave_line(place)

    def note_awaited(self, key: int, *, is_awaited: bool) -> None:
        """Somebody awaits a prompt, or does no longer; its place in the order stays. Unknown keys are ignored."""
        place = self._places.get(key)
        if place is not None:
            self._leave_line(place)
            place[2].is_awaited = is_awaited
            bisect.insort(self._lines[is_awaited], place)

    def in_order(self, is_credit_left: Callable[[], bool]) -> Iterator[Prompt]:
        """Prompts by rank; those that nobody awaits while `is_credit_left`, asked anew before each of them.

        Nothing may join or leave meanwhile.
        """
        ahead = itertools.takewhile(lambda _: is_credit_left(), self._lines[False])
        return (prompt for _, _, prompt in heapq.merge(self._lines[True], ahead))

    def _leave_line(self, place: _Place) -> None:
        line = self._lines[place[2].is_awaited]
        del line[bisect.bisect_left(line, place)]
