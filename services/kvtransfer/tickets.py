"""Tickets: the right to fetch one request's blocks, and when those blocks are free again.

Pure bookkeeping with the clock passed in; knows neither sockets nor tensors nor threads. A ticket is in one state:

    open      the prefill runs; no lease, because the prefill has a deadline of its own
    ready     the prefill is finished; the lease runs
    released  the sink gave it back                ┐
    expired   the lease ended first                ├ closing: gone once no read is in progress
    failed    the prefill failed                   ┘

Release has two phases: a ticket that closes keeps its blocks while `readers` > 0 and is handed out by `take_closed`
exactly once, when the last read ended. A closed ticket leaves a tombstone for a while, so that whoever asks late learns
at once what became of it. One thread owns a table.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.common.errors import BatonError, TicketExpired, TicketUnknown
from services.common.types import ChoiceTokens, StageTimes
from services.kvtransfer.tombstones import Tombstones


class TicketState(enum.Enum):
    """Where a ticket is in its life."""

    OPEN = "open"
    READY = "ready"
    RELEASED = "released"
    EXPIRED = "expired"
    FAILED = "failed"


LIVE = (TicketState.OPEN, TicketState.READY)


@dataclass(slots=True, kw_only=True)
class Ticket:
    """One request's KV at the source; positions below `computed_tokens` are final and may be read."""

    ticket_id: str
    request_id: str
    block_ids: tuple[int, ...]
    num_tokens: int
    computed_tokens: int = 0
    state: TicketState = TicketState.OPEN
    lease_end: float | None = None
    finished_at: float | None = None
    readers: int = 0
    first_tokens: tuple[ChoiceTokens, ...] = ()
    stages: StageTimes = field(default_factory=StageTimes)
    cached_tokens: int = 0
    error: BatonError | None = None

    @property
    def is_live(self) -> bool:
        """True while a fetch of it can go on."""
        return self.state in LIVE


class TicketTable:
    """All tickets of one source.

    Thread: owned by one thread. Every method either succeeds or changes nothing. `now` is a monotonic time in seconds.
    """

    def __init__(self, *, lease_s: float, tombstone_s: float, max_tombstones: int) -> None:
        self.lease_s = lease_s
        self._tickets: dict[str, Ticket] = {}
        self._tombstones = Tombstones(tombstone_s, max_tombstones)
        self._closed: list[str] = []
        self._counts = {"opened": 0, "released": 0, "expired": 0, "failed": 0}

    def __len__(self) -> int:
        """Tickets that hold blocks."""
        return len(self._tickets)

    def open(self, ticket_id: str, request_id: str, block_ids: Sequence[int], num_tokens: int, now: float) -> None:
        """Adds a ticket whose prefill runs; one that was given back before it was opened closes at once.

        Raises:
            ValueError: the ticket is open already.
        """
        if ticket_id in self._tickets:
            raise ValueError(f"ticket {ticket_id} is open already")
        self._counts["opened"] += 1
        ticket = Ticket(ticket_id=ticket_id, request_id=request_id, block_ids=tuple(block_ids), num_tokens=num_tokens)
        self._tickets[ticket_id] = ticket
        error = self._tombstones.find(ticket_id, now)
        if error is not None:
            self._close(ticket, TicketState.RELEASED, error, now)

    def find(self, ticket_id: str, now: float) -> Ticket | None:
        """The live ticket; None where it was not opened yet.

        Raises:
            BatonError: the ticket is gone; the error says why.
        """
        ticket = self._tickets.get(ticket_id)
        if ticket is not None and ticket.is_live:
            return ticket
        if ticket is not None and ticket.error is not None:
            raise ticket.error.with_traceback(None)
        error = self._tombstones.find(ticket_id, now)
        if error is not None:
            raise error.with_traceback(None)
        return None

    def advance(self, ticket_id: str, computed_tokens: int) -> None:
        """Positions below `computed_tokens` are final now; ignored for a ticket that is gone or further."""
        ticket = self._live(ticket_id)
        if ticket is not None:
            ticket.computed_tokens = max(ticket.computed_tokens, min(computed_tokens, ticket.num_tokens))

    def finish(
        self, ticket_id: str, first_tokens: tuple[ChoiceTokens, ...], stages: StageTimes, cached_tokens: int, now: float
    ) -> None:
        """The prefill is done: everything may be read and the lease starts; ignored for a ticket that is gone."""
        ticket = self._live(ticket_id)
        if ticket is None:
            return
        ticket.computed_tokens = ticket.num_tokens
        ticket.first_tokens, ticket.stages, ticket.cached_tokens = first_tokens, stages, cached_tokens
        ticket.state = TicketState.READY
        ticket.finished_at = now
        ticket.lease_end = now + self.lease_s

    def fail(self, ticket_id: str, error: BatonError, now: float) -> None:
        """The prefill failed, maybe before the ticket was opened; a ticket that is gone stays as it is."""
        ticket = self._tickets.get(ticket_id)
        if ticket is None:
            self._tombstones.add(ticket_id, error, now)
        elif ticket.is_live:
            self._close(ticket, TicketState.FAILED, error, now)

    def renew(self, ticket_id: str, now: float) -> float | None:
        """Starts the lease of a ready ticket anew and returns its length; None for a ticket without a lease (open).

        Raises:
            BatonError: the ticket is gone (TicketUnknown where it was never there).
        """
        ticket = self.find(ticket_id, now)
        if ticket is None:
            raise unknown(ticket_id)
        if ticket.lease_end is None:
            return None
        ticket.lease_end = now + self.lease_s
        return self.lease_s

    def release(self, ticket_id: str, now: float) -> bool:
        """Gives a ticket back, also one that is not open yet; False where it was not open. Idempotent."""
        ticket = self._tickets.get(ticket_id)
        if ticket is not None and ticket.is_live:
            self._close(ticket, TicketState.RELEASED, unknown(ticket_id), now)
            return True
        if ticket is None and self._tombstones.find(ticket_id, now) is None:
            self._tombstones.add(ticket_id, unknown(ticket_id), now)
        return False

    def expire(self, now: float) -> int:
        """Closes every ticket whose lease ended and forgets old tombstones; returns how many tickets expired."""
        late = [t for t in self._tickets.values() if t.is_live and t.lease_end is not None and t.lease_end <= now]
        for ticket in late:
            message = f"the lease of ticket {ticket.ticket_id} ended after {self.lease_s:g} s; run the prompt again"
            self._close(ticket, TicketState.EXPIRED, TicketExpired(message), now)
        self._tombstones.expire(now)
        return len(late)

    def next_expiry(self) -> float | None:
        """When the next lease ends; None where no lease runs."""
        ends = [t.lease_end for t in self._tickets.values() if t.is_live and t.lease_end is not None]
        return min(ends, default=None)

    def begin_read(self, ticket_id: str) -> Ticket | None:
        """Pins the blocks of a live ticket for one read; None where it is gone."""
        ticket = self._live(ticket_id)
        if ticket is not None:
            ticket.readers += 1
        return ticket

    def end_read(self, ticket: Ticket, now: float) -> None:
        """Ends one read; progress extends the lease of a live ticket."""
        if ticket.readers <= 0:
            raise AssertionError(f"ticket {ticket.ticket_id} has no reader")
        ticket.readers -= 1
        if ticket.is_live and ticket.lease_end is not None:
            ticket.lease_end = now + self.lease_s
        self._drop_if_idle(ticket)

    def take_closed(self) -> list[str]:
        """Tickets whose blocks became free since the last call; each ticket is handed out once."""
        closed, self._closed = self._closed, []
        return closed

    def is_computing(self, ticket_id: str) -> bool:
        """True while the ticket's prompt runs."""
        return (ticket := self._tickets.get(ticket_id)) is not None and ticket.state is TicketState.OPEN

    def live_ids(self) -> list[str]:
        """Tickets that are open or ready."""
        return [ticket.ticket_id for ticket in self._tickets.values() if ticket.is_live]

    def stats(self) -> dict[str, int]:
        """Tickets by state, tombstones, and totals since the start."""
        live = {state: sum(t.state is state for t in self._tickets.values()) for state in LIVE}
        return {
            "tickets": len(self._tickets),
            "tickets_open": live[TicketState.OPEN],
            "tickets_ready": live[TicketState.READY],
            "ticket_readers": sum(t.readers for t in self._tickets.values()),
            "tombstones": len(self._tombstones),
            **{f"tickets_{name}_total": count for name, count in self._counts.items()},
        }

    def check(self) -> None:
        """Raises AssertionError unless every ticket is in a state that the rules allow."""
        for ticket in self._tickets.values():
            if not ticket.is_live and ticket.readers == 0:
                raise AssertionError(f"{ticket.ticket_id} is {ticket.state.value} without readers, yet holds blocks")
            if (ticket.state is TicketState.READY) != (ticket.lease_end is not None and ticket.is_live):
                raise AssertionError(f"{ticket.ticket_id} is {ticket.state.value} with lease end {ticket.lease_end}")
            if not 0 <= ticket.computed_tokens <= ticket.num_tokens:
                raise AssertionError(f"{ticket.ticket_id} has computed {ticket.computed_tokens} of {ticket.num_tokens}")
        if len(self._tombstones) > self._tombstones.max_count:
            raise AssertionError("too many tombstones")
        if set(self._closed) & self._tickets.keys():
            raise AssertionError("a ticket is handed out while it holds blocks")

    def _live(self, ticket_id: str) -> Ticket | None:
        ticket = self._tickets.get(ticket_id)
        return ticket if ticket is not None and ticket.is_live else None

    def _close(self, ticket: Ticket, state: TicketState, error: BatonError, now: float) -> None:
        ticket.state, ticket.error = state, error
        self._counts[state.value] += 1
        self._tombstones.add(ticket.ticket_id, error, now)
        self._drop_if_idle(ticket)

    def _drop_if_idle(self, ticket: Ticket) -> None:
        if not ticket.is_live and ticket.readers == 0:
            del self._tickets[ticket.ticket_id]
            self._closed.append(ticket.ticket_id)


def unknown(ticket_id: str) -> TicketUnknown:
    """The error for a ticket that is not here (any more)."""
    return TicketUnknown(
        f"ticket {ticket_id} was never opened here, was given back or is long gone; run the prompt again"
    )
