"""The ticket table under every order of events: blocks come back exactly once, and never under a reader."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from services.common.errors import BatonError, Internal
from services.common.types import StageTimes
from services.kvtransfer.tickets import Ticket, TicketTable

TICKETS = st.sampled_from([f"t{number}" for number in range(4)])


class TicketMachine(RuleBasedStateMachine):
    """Opens, reads, releases, fails and expires tickets in any order, with the clock going on."""

    reads: Bundle[Ticket] = Bundle("reads")

    @initialize()
    def start(self) -> None:
        self.table = TicketTable(lease_s=5.0, tombstone_s=3.0, max_tombstones=2)
        self.now = 0.0
        self.opened: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.readers: dict[str, int] = {}

    @rule(ticket_id=TICKETS)
    def open(self, ticket_id: str) -> None:
        if self.opened.get(ticket_id, 0) == self.closed.get(ticket_id, 0):
            self.table.open(ticket_id, "r", (1,), 8, self.now)
            self.opened[ticket_id] = self.opened.get(ticket_id, 0) + 1
            self.collect()

    @rule(ticket_id=TICKETS, tokens=st.integers(-1, 10))
    def advance(self, ticket_id: str, tokens: int) -> None:
        self.table.advance(ticket_id, tokens)

    @rule(ticket_id=TICKETS)
    def finish(self, ticket_id: str) -> None:
        self.table.finish(ticket_id, (), StageTimes(), 0, self.now)

    @rule(ticket_id=TICKETS)
    def fail(self, ticket_id: str) -> None:
        self.table.fail(ticket_id, Internal("failed"), self.now)
        self.collect()

    @rule(ticket_id=TICKETS)
    def release(self, ticket_id: str) -> None:
        self.table.release(ticket_id, self.now)
        self.collect()

    @rule(ticket_id=TICKETS)
    def renew(self, ticket_id: str) -> None:
        try:
            self.table.renew(ticket_id, self.now)
        except BatonError:
            assert self.table.begin_read(ticket_id) is None

    @rule(target=reads, ticket_id=TICKETS)
    def begin_read(self, ticket_id: str) -> Ticket | None:
        ticket = self.table.begin_read(ticket_id)
        if ticket is not None:
            self.readers[ticket_id] = self.readers.get(ticket_id, 0) + 1
        return ticket

    @rule(ticket=consumes(reads))
    def end_read(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self.readers[ticket.ticket_id] -= 1
            self.table.end_read(ticket, self.now)
            self.collect()

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.table.expire(self.now)
        self.collect()

    def collect(self) -> None:
        """Takes what came back: never under a reader, never more often than it was opened."""
        for ticket_id in self.table.take_closed():
            assert self.readers.get(ticket_id, 0) == 0
            self.closed[ticket_id] = self.closed.get(ticket_id, 0) + 1
            assert self.closed[ticket_id] <= self.opened[ticket_id]

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check()
        held = sum(self.opened.values()) - sum(self.closed.values())
        assert len(self.table) == held

    def teardown(self) -> None:
        """After all reads ended and all leases ran out nothing is held."""
        if not hasattr(self, "table"):
            return
        for ticket_id in [*self.table.live_ids()]:
            self.table.release(ticket_id, self.now)
        assert len(self.table) == sum(1 for count in self.readers.values() if count > 0)


TicketMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTickets = TicketMachine.TestCase
