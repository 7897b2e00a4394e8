"""Membership with leases, told the time by the test."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.errors import InvalidRequest, Overloaded
from services.common.types import Tier
from services.kvtransfer.compatibility import incompatibility
from services.kvtransfer.directory.registry import Registry
from tests.harness.workers import worker_info

LEASE_S = 6.0


def registry(**limits: int) -> Registry:
    return Registry(LEASE_S, incompatibility, **limits)


def ids(members: Registry) -> list[str]:
    return [worker.worker_id for worker in members.membership().workers]


def test_a_member_stays_as_long_as_it_renews():
    """A renewal starts the lease anew; without one the member is gone when the lease ends, not before."""
    members = registry()
    worker = worker_info("p")
    members.register(worker, now=0)
    members.register(worker, now=4)
    assert members.expire(now=9.9) == ()
    assert members.expire(now=10) == (worker,)
    assert ids(members) == []


def test_whoever_expired_is_told_apart_from_whoever_left():
    """Until it comes back, as itself or restarted, or says after all that it leaves."""
    members = registry()
    for name in "abcd":
        members.register(worker_info(name, incarnation=f"{name}1"), now=0)
    members.deregister("d", "d1")
    members.expire(now=6)
    assert members.membership().expired == ("a1", "b1", "c1")
    members.register(worker_info("a", incarnation="a1"), now=7)
    members.register(worker_info("b", incarnation="b2"), now=7)
    assert members.membership().expired == ("c1",)
    revision = members.revision
    assert not members.deregister("c", "c0")
    assert members.deregister("c", "c1")
    assert members.membership().expired == ()
    assert members.revision == revision + 1


def test_no_more_are_remembered_than_may_be_members():
    """Those that expired last, so that crashes under ever new names cost a bounded snapshot."""
    members = registry(max_members=2)
    for place in range(3):
        members.register(worker_info(f"w{place}", incarnation=f"i{place}"), now=10 * place)
        members.expire(now=10 * place + 6)
    assert members.membership().expired == ("i1", "i2")


def test_a_renewal_is_no_change():
    """Watchers hear nothing of renewals, but of every join, change and leave."""
    members = registry(first_revision=41)
    worker = worker_info("p")
    members.register(worker, now=0)
    assert members.revision == 42
    members.register(worker, now=1)
    assert members.revision == 42
    members.register(dataclasses.replace(worker, total_blocks=65), now=2)
    assert members.revision == 43
    assert members.deregister("p", "i1")
    assert members.revision == 44
    assert members.membership().revision == 44


def test_a_new_incarnation_replaces_the_old_one_at_once():
    """Nobody waits for the lease of a process that is known to be gone."""
    members = registry()
    members.register(worker_info("p", incarnation="old"), now=0)
    members.register(worker_info("p", incarnation="new"), now=1)
    assert [worker.incarnation for worker in members.membership().workers] == ["new"]


def test_a_replaced_incarnation_cannot_come_back():
    """A zombie's renewal is refused, and its leave touches nobody."""
    members = registry()
    members.register(worker_info("p", incarnation="old"), now=0)
    members.register(worker_info("p", incarnation="new"), now=1)
    with pytest.raises(InvalidRequest, match=r"worker\.incarnation"):
        members.register(worker_info("p", incarnation="old"), now=2)
    assert not members.deregister("p", "old")
    assert [worker.incarnation for worker in members.membership().workers] == ["new"]
    assert members.expire(now=7) != ()


def test_an_unknown_worker_leaves_without_effect():
    """Deregistering twice is harmless."""
    members = registry()
    members.register(worker_info("p"), now=0)
    assert members.deregister("p", "i1")
    assert not members.deregister("p", "i1")


def test_a_full_directory_says_so_and_still_renews():
    """The bound holds for new members only."""
    members = registry(max_members=1)
    members.register(worker_info("a"), now=0)
    with pytest.raises(Overloaded) as caught:
        members.register(worker_info("b"), now=0)
    assert caught.value.retry_after_s
    members.register(worker_info("a"), now=5)
    members.expire(now=7)
    assert ids(members) == ["a"]


def test_incompatible_pairs_are_refused_with_the_reason():
    """Both sides are told when they join, whichever comes first; compatible pairs are not mentioned."""
    members = registry()
    assert members.register(worker_info("p"), now=0) == ()
    (pair,) = members.register(worker_info("d", Tier.DECODE, num_layers=3), now=0)
    assert (pair.prefill_worker_id, pair.decode_worker_id) == ("p", "d")
    assert "num_layers" in pair.reason
    assert members.register(worker_info("d2", Tier.DECODE), now=0) == ()
    assert members.membership().refused_pairs == (pair,)
    assert members.register(worker_info("p"), now=1) == (pair,)


def test_refused_pairs_leave_with_their_workers():
    """And vanish when a worker comes back with another layout."""
    members = registry()
    members.register(worker_info("p"), now=0)
    members.register(worker_info("d", Tier.DECODE, head_dim=32), now=0)
    members.register(worker_info("d", Tier.DECODE, incarnation="i2"), now=1)
    assert members.membership().refused_pairs == ()
    members.register(worker_info("e", Tier.DECODE, head_dim=32), now=2)
    members.deregister("p", "i1")
    assert members.membership().refused_pairs == ()


def test_workers_of_different_models_are_no_pair():
    """They never meet, so they are not reported."""
    members = registry()
    members.register(worker_info("p"), now=0)
    other = dataclasses.replace(worker_info("d", Tier.DECODE, head_dim=32), model="other")
    assert members.register(other, now=0) == ()


def test_colocated_workers_are_in_no_pair():
    """They run whole requests alone."""
    members = registry()
    members.register(worker_info("p"), now=0)
    assert members.register(worker_info("c", Tier.COLOCATED, head_dim=32), now=0) == ()


def test_a_stalled_directory_blames_nobody():
    """After a stall every lease has its full length again, however much of it was left before."""
    members = registry()
    members.register(worker_info("p"), now=0)
    members.renew_all(now=60)
    assert members.expire(now=65) == ()
    assert members.next_expiry() == 66


def test_stats_count_tiers():
    """Operators see who is there."""
    members = registry()
    members.register(worker_info("p"), now=0)
    members.register(worker_info("d", Tier.DECODE, head_dim=32), now=0)
    assert members.stats() == {"prefill_workers": 1, "decode_workers": 1, "colocated_workers": 0, "refused_pairs": 1}


@given(st.lists(st.sampled_from(["c", "a", "b", "d"]), max_size=8))
def test_members_are_ordered_by_id(names: list[str]):
    """Whatever the order of arrival."""
    members = registry()
    for name in names:
        members.register(worker_info(name), now=0)
    assert ids(members) == sorted(set(names))


class RegistryAgainstModel(RuleBasedStateMachine):
    """Any interleaving of joins, leaves and time leaves exactly the members with a running lease."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Registry(LEASE_S, incompatibility)
        self.now = 0.0
        self.expected: dict[str, tuple[str, float]] = {}
        self.expired: dict[str, str] = {}
        self.replaced: dict[str, set[str]] = {}
        self.revision = 0

    @rule(name=st.sampled_from("ab"), incarnation=st.sampled_from("xyz"))
    def register(self, name: str, incarnation: str) -> None:
        try:
            self.members.register(worker_info(name, incarnation=incarnation), self.now)
        except InvalidRequest:
            assert incarnation in self.replaced.get(name, set())
            return
        assert incarnation not in self.replaced.get(name, set())
        if name in self.expected and self.expected[name][0] != incarnation:
            self.replaced.setdefault(name, set()).add(self.expected[name][0])
        self.expected[name] = (incarnation, self.now + LEASE_S)
        self.expired.pop(name, None)

    @rule(name=st.sampled_from("ab"), incarnation=st.sampled_from("xyz"))
    def deregister(self, name: str, incarnation: str) -> None:
        is_member = name in self.expected and self.expected[name][0] == incarnation
        has_expired = self.expired.get(name) == incarnation
        assert self.members.deregister(name, incarnation) == (is_member or has_expired)
        if has_expired:
            del self.expired[name]
        if is_member:
            self.forget(name)

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        gone = {worker.worker_id for worker in self.members.expire(self.now)}
        assert gone == {name for name, (_, end) in self.expected.items() if end <= self.now}
        for name in gone:
            self.expired[name] = self.expected[name][0]
            self.forget(name)

    def forget(self, name: str) -> None:
        del self.expected[name]
        self.replaced.pop(name, None)

    @invariant()
    def members_are_those_expected(self) -> None:
        found = {worker.worker_id: worker.incarnation for worker in self.members.membership().workers}
        assert found == {name: incarnation for name, (incarnation, _) in self.expected.items()}
        assert sorted(self.members.membership().expired) == sorted(self.expired.values())
        assert self.members.next_expiry() == min((end for _, end in self.expected.values()), default=None)

    @invariant()
    def revision_never_falls(self) -> None:
        assert self.members.revision >= self.revision
        self.revision = self.members.revision


TestRegistryAgainstModel = RegistryAgainstModel.TestCase
