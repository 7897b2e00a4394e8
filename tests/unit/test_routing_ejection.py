"""Ejections: who is left out, for how long, and how they come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import errors
from services.common.types import Tier
from services.frontend.routing.blame import Blame, blame
from services.frontend.routing.ejection import EjectionRules, Ejections

P, D = Tier.PREFILL, Tier.DECODE
RULES = EjectionRules(failures=3, least_requests=10, first_s=5.0, longest_s=40.0, window_s=20.0)
LIVE = {"p1": P, "p2": P, "d1": D, "d2": D, "d3": D, "d4": D}


def fail(ejections: Ejections, suspect: str | tuple[str, str], now: float, times: int = 3) -> None:
    """So many failures in a row."""
    for _ in range(times):
        ejections.failed(suspect, now)


def test_failures_in_a_row_eject_and_time_readmits() -> None:
    """The third failure in a row leaves a worker out for the first time; one success on probation ends it."""
    ejections = Ejections(RULES)
    fail(ejections, "d1", 0.0, 2)
    ejections.succeeded("d1", 0.0)
    fail(ejections, "d1", 0.0, 2)
    assert not ejections.out(LIVE, 0.0)
    fail(ejections, "d1", 0.0, 1)
    assert ejections.out(LIVE, 4.9) == {"d1"}
    assert not ejections.out(LIVE, 5.0)
    ejections.succeeded("d1", 5.0)
    assert ejections.readmitted_at("d1") == 5.0
    fail(ejections, "d1", 6.0, 2)
    assert not ejections.out(LIVE, 6.0)


def test_probation_lets_one_request_through_at_a_time() -> None:
    """While the request on probation runs nothing more is sent; if it vanishes, another may try."""
    ejections = Ejections(RULES)
    fail(ejections, "d1", 0.0)
    ejections.began("d1", 5.0)
    assert ejections.out(LIVE, 6.0) == {"d1"}
    assert not ejections.out(LIVE, 10.0)


def test_each_ejection_lasts_twice_as_long_up_to_a_bound() -> None:
    """A request that fails on probation ejects at once and for longer; a long healthy time makes up for it."""
    ejections, now = Ejections(RULES), 0.0
    fail(ejections, "d1", now)
    for lasts_s in (5.0, 10.0, 20.0, 40.0, 40.0):
        assert ejections.out(LIVE, now + lasts_s - 0.01) == {"d1"}
        now += lasts_s
        assert not ejections.out(LIVE, now)
        ejections.failed("d1", now)
    ejections.succeeded("d1", now + 40.0)
    fail(ejections, "d1", now + 100.0)
    assert ejections.out(LIVE, now + 104.9)
    assert not ejections.out(LIVE, now + 105.0)


def test_what_began_before_an_ejection_does_not_end_it() -> None:
    """Successes and failures of old requests change nothing until the time is up."""
    ejections = Ejections(RULES)
    fail(ejections, "d1", 0.0)
    ejections.succeeded("d1", 1.0)
    assert not ejections.failed("d1", 2.0)
    assert ejections.out(LIVE, 4.9) == {"d1"}
    assert not ejections.out(LIVE, 5.0)


def test_failure_rate_ejects_where_there_were_enough_requests() -> None:
    """Every second request failing never makes three in a row, yet it ejects after ten."""
    ejections = Ejections(RULES)
    for number in range(4):
        ejections.succeeded("d1", float(number))
        assert not ejections.failed("d1", float(number))
    ejections.succeeded("d1", 5.0)
    assert ejections.failed("d1", 5.0)


def test_old_requests_leave_the_window() -> None:
    """Failures longer ago than the window count no more."""
    ejections = Ejections(RULES)
    for number in range(4):
        ejections.succeeded("d1", float(number))
        ejections.failed("d1", float(number))
    ejections.succeeded("d1", 40.0)
    assert not ejections.failed("d1", 40.0)


def test_pair_is_judged_apart_from_its_workers() -> None:
    """A pair between which no KV arrives is out; both its workers go on with others."""
    ejections = Ejections(RULES)
    fail(ejections, ("p1", "d1"), 0.0)
    assert ejections.out(LIVE, 1.0) == {("p1", "d1")}
    ejections.left("p1")
    assert ejections.stats() == {"ejection_records": 0}


def test_restart_readmits_but_is_remembered() -> None:
    """Another incarnation starts clean; should it fail like the last, it is out for longer."""
    ejections = Ejections(RULES)
    fail(ejections, "d1", 0.0)
    ejections.restarted("d1", 0.5)
    assert not ejections.out(LIVE, 1.0)
    ejections.succeeded("d1", 1.0)
    fail(ejections, "d1", 2.0)
    assert ejections.out(LIVE, 2.0 + 9.9) == {"d1"}


def test_no_failures_allowed_means_never() -> None:
    """With the rule set to 0 nobody is ever ejected and nothing is kept."""
    ejections = Ejections(EjectionRules(failures=0))
    fail(ejections, "d1", 0.0, 100)
    assert not ejections.out(LIVE, 0.0)
    assert ejections.stats() == {"ejection_records": 0}


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "failed", "failed", "succeeded", "began", "restarted", "left"]),
        st.sampled_from(sorted(LIVE)),
        st.floats(0, 8),
    ),
    max_size=120,
)


@given(events=_EVENTS, live=st.sets(st.sampled_from(sorted(LIVE))), share=st.floats(0, 1))
def test_never_more_than_the_share_and_never_the_last(
    events: list[tuple[str, str, float]], live: set[str], share: float
) -> None:
    """Whatever happens and whoever is left: of each tier somebody stays in, and no more than the share is out."""
    ejections, now = Ejections(EjectionRules(failures=2, first_s=20.0, most_share=share)), 0.0
    for what, worker_id, later in events:
        now += later
        act = getattr(ejections, what)
        _ = act(worker_id) if what == "left" else act(worker_id, now)
        out = ejections.out({each: LIVE[each] for each in live}, now)
        for tier in (P, D):
            members = {each for each in live if LIVE[each] is tier}
            assert out & members < members or not members
            assert len(out & members) <= max(1, share * len(members))
    assert ejections.stats()["ejection_records"] <= len(LIVE)


PEER = "decode worker d1 at h:1"


@pytest.mark.parametrize(
    ("error", "alone", "with_source"),
    [
        (errors.Internal("x"), Blame.WORKER, Blame.WORKER),
        (errors.PeerUnreachable("x", details={"peer": PEER}), Blame.WORKER, Blame.WORKER),
        (errors.PeerUnreachable("x", details={"peer": "prefill worker p1 at h:2"}), Blame.WORKER, Blame.PAIR),
        (errors.ChannelBroken("x"), Blame.WORKER, Blame.PAIR),
        (errors.KvCorrupt("x"), Blame.WORKER, Blame.PAIR),
        (errors.TicketExpired("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.QueueFull("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.KvPoolFull("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.Draining("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.Cancelled("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.DeadlineExceeded("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.NotFound("x"), Blame.NOBODY, Blame.NOBODY),
        (errors.InvalidRequest(errors.FieldViolation("f", "x")), Blame.NOBODY, Blame.NOBODY),
    ],
)
def test_only_faults_count(error: errors.BatonError, alone: Blame, with_source: Blame) -> None:
    """What a client can cause and what a healthy worker may say is held against nobody."""
    assert blame(error, PEER, has_source=False) is alone
    assert blame(error, PEER, has_source=True) is with_source
