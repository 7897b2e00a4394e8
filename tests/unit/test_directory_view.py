"""What a watcher believes while the directory is away and after it has come back."""

from services.common.types import Membership, RefusedPair, Tier
from services.kvtransfer.directory.view import MembershipView
from tests.harness.workers import worker_info

GRACE_S = 6.0
PAIR = RefusedPair(prefill_worker_id="p", decode_worker_id="d", reason="num_layers differs")


def snapshot(revision: int, *names: str, pairs: tuple[RefusedPair, ...] = ()) -> Membership:
    return Membership(revision=revision, workers=tuple(worker_info(name) for name in names), refused_pairs=pairs)


def ids(membership: Membership) -> list[str]:
    return [worker.worker_id for worker in membership.workers]


def test_nobody_before_the_first_snapshot():
    """An empty membership, and nothing to wait for."""
    view = MembershipView(GRACE_S)
    assert view.current(0) == Membership()
    assert view.next_change() is None


def test_changes_of_one_start_are_believed_at_once():
    """A member that leaves a living directory is gone without a grace."""
    view = MembershipView(GRACE_S)
    view.update(snapshot(10, "d", "p"), now=0)
    assert ids(view.update(snapshot(11, "p"), now=1)) == ["p"]
    assert view.next_change() is None


def test_members_of_an_earlier_start_are_kept_for_a_grace():
    """A restarted directory knows nobody at first; routes must go on working."""
    view = MembershipView(GRACE_S)
    view.update(snapshot(10, "d", "p"), now=0)
    assert ids(view.update(snapshot(2**50), now=100)) == ["d", "p"]
    assert view.next_change() == 106
    assert ids(view.current(105.9)) == ["d", "p"]
    assert ids(view.current(106)) == []


def test_a_lower_revision_is_another_start_too():
    """Starts count from random numbers."""
    view = MembershipView(GRACE_S)
    view.update(snapshot(2**50, "p"), now=0)
    assert ids(view.update(snapshot(3), now=1)) == ["p"]


def test_a_kept_member_that_registers_again_is_the_registered_one():
    """And when it then leaves it is gone, grace or not."""
    view = MembershipView(GRACE_S)
    view.update(snapshot(10, "d", "p"), now=0)
    restarted = worker_info("p", incarnation="i2")
    believed = view.update(Membership(revision=2**50, workers=(restarted,)), now=1)
    assert [(worker.worker_id, worker.incarnation) for worker in believed.workers] == [("d", "i1"), ("p", "i2")]
    assert ids(view.update(snapshot(2**50 + 1), now=2)) == ["d"]


def test_a_second_restart_within_the_grace_keeps_those_still_kept():
    """The grace starts anew with each restart that is met."""
    view = MembershipView(GRACE_S)
    view.update(snapshot(10, "p"), now=0)
    view.update(snapshot(2**50), now=1)
    assert ids(view.update(snapshot(2**40), now=5)) == ["p"]
    assert ids(view.current(10.9)) == ["p"]
    assert ids(view.current(11)) == []


def test_refused_pairs_are_kept_with_their_members():
    """A pair that was refused must not become routable because the directory restarted."""
    decode = worker_info("d", Tier.DECODE)
    view = MembershipView(GRACE_S)
    view.update(Membership(revision=10, workers=(decode, worker_info("p")), refused_pairs=(PAIR,)), now=0)
    assert view.update(Membership(revision=2**50, workers=(decode,)), now=1).refused_pairs == (PAIR,)
    both = Membership(revision=2**50 + 1, workers=(decode, worker_info("p")))
    assert view.update(both, now=2).refused_pairs == ()
