"""Remembers for a while what became of tickets that are gone.

Pure, with the clock passed in. Bounded in time and number, so that made-up tickets cannot fill the memory.
"""

from collections import OrderedDict

from services.common.errors import BatonError


class Tombstones:
    """Errors by ticket, the oldest forgotten first. One thread owns it."""

    def __init__(self, keep_s: float, max_count: int) -> None:
        self.max_count = max_count
        self._keep_s = keep_s
        self._errors: OrderedDict[str, tuple[BatonError, float]] = OrderedDict()

    def __len__(self) -> int:
        """Tickets that are remembered."""
        return len(self._errors)

    def add(self, ticket_id: str, error: BatonError, now: float) -> None:
        """Remembers why a ticket is gone."""
        self._errors.pop(ticket_id, None)
        self._errors[ticket_id] = (error, now + self._keep_s)
        while len(self._errors) > self.max_count:
            self._errors.popitem(last=False)

    def find(self, ticket_id: str, now: float) -> BatonError | None:
        """Why a ticket is gone; None where it is not known to be."""
        error, until = self._errors.get(ticket_id, (None, now))
        return error if now < until else None

    def expire(self, now: float) -> None:
        """Forgets what is old."""
        while self._errors and next(iter(self._errors.values()))[1] <= now:
            self._errors.popitem(last=False)
