"""What every rule of the ticket table guarantees, one at a time."""

import pytest

from services.common.errors import HandoffError, Internal, TicketExpired, TicketUnknown
from services.common.types import StageTimes
from services.kvtransfer.tickets import TicketState, TicketTable

LEASE_S = 10.0
TOMBSTONE_S = 5.0


def table() -> TicketTable:
    return TicketTable(lease_s=LEASE_S, tombstone_s=TOMBSTONE_S, max_tombstones=3)


def ready(tickets: TicketTable, ticket_id: str = "t", now: float = 0.0) -> None:
    tickets.open(ticket_id, "r", (1, 2), 8, now)
    tickets.finish(ticket_id, (), StageTimes(), 0, now)


def test_open_ticket_has_no_lease() -> None:
    """A prefill may take longer than a lease: its own deadline bounds it."""
    tickets = table()
    tickets.open("t", "r", (1,), 4, 0.0)
    assert tickets.next_expiry() is None
    assert tickets.expire(1e9) == 0


def test_lease_starts_at_finish_and_ends_on_time() -> None:
    """A finished ticket closes exactly when its lease ends, not before."""
    tickets = table()
    tickets.open("t", "r", (1,), 4, 0.0)
    tickets.finish("t", (), StageTimes(), 0, 100.0)
    assert tickets.next_expiry() == 100.0 + LEASE_S
    assert tickets.expire(100.0 + LEASE_S - 0.001) == 0
    assert tickets.expire(100.0 + LEASE_S) == 1
    assert tickets.take_closed() == ["t"]


def test_renew_starts_the_lease_anew() -> None:
    """A renewed ticket outlives its first lease."""
    tickets = table()
    ready(tickets)
    assert tickets.renew("t", 9.0) == LEASE_S
    assert tickets.expire(15.0) == 0
    assert tickets.expire(19.0) == 1


def test_renew_after_expiry_says_expired() -> None:
    """This is what a sink relies on after its copy: an expired ticket can never be renewed."""
    tickets = table()
    ready(tickets)
    tickets.expire(LEASE_S)
    with pytest.raises(TicketExpired):
        tickets.renew("t", LEASE_S)


def test_released_ticket_waits_for_its_readers() -> None:
    """Blocks come back only when the last read has ended."""
    tickets = table()
    ready(tickets)
    first, second = tickets.begin_read("t"), tickets.begin_read("t")
    assert first is not None
    assert second is not None
    assert tickets.release("t", 1.0)
    assert tickets.take_closed() == []
    tickets.end_read(first, 1.0)
    assert tickets.take_closed() == []
    tickets.end_read(second, 1.0)
    assert tickets.take_closed() == ["t"]
    assert tickets.take_closed() == []


def test_closing_ticket_takes_no_new_readers() -> None:
    """No read starts on blocks that are on their way back."""
    tickets = table()
    ready(tickets)
    tickets.begin_read("t")
    tickets.release("t", 1.0)
    assert tickets.begin_read("t") is None


def test_release_is_idempotent() -> None:
    """A second release is no error and hands nothing back again."""
    tickets = table()
    ready(tickets)
    assert tickets.release("t", 1.0)
    assert not tickets.release("t", 1.0)
    assert tickets.take_closed() == ["t"]


def test_late_fetch_learns_the_prefills_error() -> None:
    """A fetch after a failed prefill fails at once with what the prefill failed with."""
    tickets = table()
    tickets.open("t", "r", (1,), 4, 0.0)
    tickets.fail("t", Internal("the prefill fell over"), 0.0)
    with pytest.raises(Internal, match="fell over"):
        tickets.find("t", 1.0)


def test_failure_before_open_is_remembered() -> None:
    """A prompt that never started (its queue was full) fails its fetch, too."""
    tickets = table()
    tickets.fail("t", HandoffError("queue full"), 0.0)
    with pytest.raises(HandoffError, match="queue full"):
        tickets.find("t", 1.0)
    assert tickets.take_closed() == []


def test_tombstone_is_short_lived() -> None:
    """After its time a ticket is forgotten: a fetch then waits as for one that is not open yet."""
    tickets = table()
    ready(tickets)
    tickets.release("t", 0.0)
    with pytest.raises(TicketUnknown):
        tickets.find("t", TOMBSTONE_S - 0.1)
    assert tickets.find("t", TOMBSTONE_S + 0.1) is None
    tickets.expire(TOMBSTONE_S + 0.1)
    assert tickets.stats()["tombstones"] == 0


def test_tombstones_are_bounded() -> None:
    """Releases of made-up tickets cannot fill the memory; the oldest are forgotten first."""
    tickets = table()
    for number in range(10):
        tickets.release(f"x{number}", 0.0)
    assert tickets.stats()["tombstones"] == 3
    assert tickets.find("x0", 0.0) is None


def test_ticket_released_before_it_was_opened_closes_at_once() -> None:
    """A cancel that overtakes the prefill still frees the blocks."""
    tickets = table()
    assert not tickets.release("t", 0.0)
    tickets.open("t", "r", (1,), 4, 1.0)
    assert tickets.take_closed() == ["t"]
    assert len(tickets) == 0


def test_open_twice_is_a_bug() -> None:
    """Two prompts never share a ticket."""
    tickets = table()
    ready(tickets)
    with pytest.raises(ValueError, match="open already"):
        tickets.open("t", "r", (1,), 4, 0.0)


def test_advance_never_goes_back_nor_beyond() -> None:
    """Positions that are final stay final; a wrong count cannot expose unwritten blocks."""
    tickets = table()
    tickets.open("t", "r", (1, 2), 8, 0.0)
    tickets.advance("t", 5)
    tickets.advance("t", 3)
    ticket = tickets.find("t", 0.0)
    assert ticket is not None
    assert ticket.computed_tokens == 5
    tickets.advance("t", 99)
    assert ticket.computed_tokens == 8
    assert ticket.state is TicketState.OPEN


def test_progress_extends_the_lease() -> None:
    """A slow sink that keeps fetching does not lose its ticket; one that stopped does."""
    tickets = table()
    ready(tickets)
    ticket = tickets.begin_read("t")
    assert ticket is not None
    tickets.end_read(ticket, 8.0)
    assert tickets.expire(12.0) == 0
    assert tickets.expire(18.0) == 1
