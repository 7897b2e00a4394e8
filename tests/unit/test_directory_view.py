"""What a watcher believes while the directory is away, after it has come back, and of those that fell silent."""

from services.common.types import Membership, RefusedPair, Tier
from services.kvtransfer.directory.view import MembershipView
from tests.harness.workers import worker_info

GRACE_S = 6.0
PAIR = RefusedPair(prefill_worker_id="p", decode_worker_id="d", reason="num_layers differs")


def snapshot(revision: int, *names: str, expired: tuple[str, ...] = ()) -> Membership:
    return Membership(revision=revision, workers=tuple(worker_info(name) for name in names), expired=expired)


def view_that_hears(*incarnations: str) -> MembershipView:
    return MembershipView(GRACE_S, lambda incarnation: incarnation in incarnations)


def ids(membership: Membership) -> list[str]:
    return [worker.worker_id for worker in membership.workers]


def test_nobody_before_the_first_snapshot():
    """An empty membership, and nothing to wait for."""
    view = view_that_hears()
    assert view.current(0) == Membership()
    assert view.next_change() is None


def test_who_says_that_it_leaves_is_gone_at_once():
    """Without a grace, and heard or not: it may send reports until its last request has ended."""
    view = view_that_hears("i1")
    view.update(snapshot(10, "d", "p"), now=0)
    assert ids(view.update(snapshot(11, "p"), now=1)) == ["p"]
    assert view.next_change() is None


def test_who_fell_silent_is_kept_for_a_grace():
    """Its renewals may have been lost where the watcher's own way to it is fine."""
    view = view_that_hears()
    view.update(snapshot(10, "p"), now=0)
    believed = view.update(snapshot(11, expired=("i1",)), now=1)
    assert ids(believed) == ["p"]
    assert believed.expired == ()
    assert view.next_change() == 7
    assert ids(view.current(6.9)) == ["p"]
    assert ids(view.current(7)) == []
    assert ids(view.update(snapshot(12, expired=("i1",)), now=8)) == []


def test_who_is_heard_is_kept_until_it_is_not():
    """However long the directory hears nothing of it; each look gives another grace."""
    heard = {"i1"}
    view = MembershipView(GRACE_S, lambda incarnation: incarnation in heard)
    view.update(snapshot(10, "p"), now=0)
    view.update(snapshot(11, expired=("i1",)), now=1)
    assert ids(view.current(7)) == ["p"]
    assert view.next_change() == 13
    heard.clear()
    assert ids(view.current(12.9)) == ["p"]
    assert ids(view.current(13)) == []


def test_another_change_does_not_lengthen_a_grace():
    """Members come and go while one of them is silent."""
    view = view_that_hears()
    view.update(snapshot(10, "p"), now=0)
    view.update(snapshot(11, expired=("i1",)), now=1)
    view.update(snapshot(12, "q", expired=("i1",)), now=5)
    assert ids(view.current(7)) == ["q"]


def test_who_fell_silent_and_then_says_that_it_leaves_is_gone_at_once():
    """It is no longer among those that expired."""
    view = view_that_hears("i1")
    view.update(snapshot(10, "p"), now=0)
    assert ids(view.update(snapshot(11, expired=("i1",)), now=1)) == ["p"]
    assert ids(view.update(snapshot(12), now=2)) == []


def test_who_fell_silent_and_was_replaced_is_the_new_one():
    """A restarted worker waits for nobody's grace."""
    view = view_that_hears("i1")
    view.update(snapshot(10, "p"), now=0)
    view.update(snapshot(11, expired=("i1",)), now=1)
    believed = view.update(Membership(revision=12, workers=(worker_info("p", incarnation="i2"),)), now=2)
    assert [worker.incarnation for worker in believed.workers] == ["i2"]
    assert view.next_change() is None


def test_members_of_an_earlier_start_are_kept_for_a_grace():
    """A restarted directory knows nobody at first; routes must go on working."""
    view = view_that_hears()
    view.update(snapshot(10, "d", "p"), now=0)
    assert ids(view.update(snapshot(2**50), now=100)) == ["d", "p"]
    assert view.next_change() == 106
    assert ids(view.current(105.9)) == ["d", "p"]
    assert ids(view.current(106)) == []


def test_a_lower_revision_is_another_start_too():
    """Starts count from random numbers."""
    view = view_that_hears()
    view.update(snapshot(2**50, "p"), now=0)
    assert ids(view.update(snapshot(3), now=1)) == ["p"]


def test_a_kept_member_that_registers_again_is_the_registered_one():
    """And when it then leaves it is gone, grace or not."""
    view = view_that_hears()
    view.update(snapshot(10, "d", "p"), now=0)
    restarted = worker_info("p", incarnation="i2")
    believed = view.update(Membership(revision=2**50, workers=(restarted,)), now=1)
    assert [(worker.worker_id, worker.incarnation) for worker in believed.workers] == [("d", "i1"), ("p", "i2")]
    assert ids(view.update(snapshot(2**50 + 1), now=2)) == ["d"]


def test_a_second_restart_within_the_grace_keeps_those_still_kept():
    """The grace starts anew with each restart that is met."""
    view = view_that_hears()
    view.update(snapshot(10, "p"), now=0)
    view.update(snapshot(2**50), now=1)
    assert ids(view.update(snapshot(2**40), now=5)) == ["p"]
    assert ids(view.current(10.9)) == ["p"]
    assert ids(view.current(11)) == []


def test_refused_pairs_are_kept_with_their_members():
    """A pair that was refused must not become routable because the directory restarted."""
    decode = worker_info("d", Tier.DECODE)
    view = view_that_hears()
    view.update(Membership(revision=10, workers=(decode, worker_info("p")), refused_pairs=(PAIR,)), now=0)
    assert view.update(Membership(revision=2**50, workers=(decode,)), now=1).refused_pairs == (PAIR,)
    both = Membership(revision=2**50 + 1, workers=(decode, worker_info("p")))
    assert view.update(both, now=2).refused_pairs == ()
