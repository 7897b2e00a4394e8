"""Which pairs of workers may be routed to: proven ones, and for a moment those that are being opened."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.types import Load, Tier
from services.frontend.pairs import Pairs
from services.frontend.routing.candidate import Candidate
from tests.harness.workers import worker_info

GRACE_S = 3.0


def candidate(name: str, proven: tuple[str, ...] | None = None, *, draining: bool = False) -> Candidate:
    """A prefill worker (p…) or a decode worker (d…); its incarnation is its name with an i in front."""
    tier = Tier.PREFILL if name.startswith("p") else Tier.DECODE
    worker = worker_info(name, tier, incarnation=f"i{name}")
    return Candidate(worker=worker, load=Load(proven=proven, draining=draining))


def test_only_proven_pairs_are_used_where_there_are_some():
    """A worker that just joined waits until its channel is proven."""
    workers = [candidate("p1"), candidate("p2"), candidate("d1", ("ip1",))]
    assert Pairs(GRACE_S).usable(workers, frozenset(), 0.0).closed == {("p2", "d1")}


def test_a_pair_that_is_being_opened_is_used_where_none_is_proven():
    """The first request after a start goes the usual way, and waits for the channel."""
    usable = Pairs(GRACE_S).usable([candidate("p1"), candidate("d1", ())], frozenset(), 0.0)
    assert not usable.closed
    assert not usable.is_blocked


def test_after_the_grace_decode_serves_alone_and_that_is_said():
    """Prefill workers that nobody can fetch from are not used, and not in silence."""
    pairs = Pairs(GRACE_S)
    workers = [candidate("p1"), candidate("d1", ())]
    pairs.usable(workers, frozenset(), 0.0)
    usable = pairs.usable(workers, frozenset(), GRACE_S)
    assert usable.closed == usable.overdue == {("p1", "d1")}
    assert usable.is_blocked


def test_the_grace_begins_when_the_channel_was_lost():
    """Not when the workers met: a channel that broke is rebuilt in a moment."""
    pairs = Pairs(GRACE_S)
    pairs.usable([candidate("p1"), candidate("d1", ("ip1",))], frozenset(), 0.0)
    workers = [candidate("p1"), candidate("d1", ())]
    assert not pairs.usable(workers, frozenset(), 100.0).closed
    assert pairs.usable(workers, frozenset(), 100.0 + GRACE_S).closed


def test_a_restarted_worker_gets_a_grace_of_its_own():
    """A proof belongs to one process: another incarnation is another pair."""
    pairs = Pairs(GRACE_S)
    pairs.usable([candidate("p1"), candidate("d1", ())], frozenset(), 0.0)
    restarted = Candidate(worker=worker_info("p1", Tier.PREFILL, incarnation="new"), load=Load())
    assert not pairs.usable([restarted, candidate("d1", ("ip1",))], frozenset(), GRACE_S).closed


def test_a_worker_that_does_not_tell_is_trusted():
    """Where channels open with the first handoff there is nothing to wait for."""
    assert not Pairs(0.0).usable([candidate("p1"), candidate("d1", None)], frozenset(), 0.0).closed


def test_a_draining_pair_does_not_keep_another_from_its_grace():
    """A proven pair that takes nothing new counts for nothing."""
    workers = [candidate("p1"), candidate("d1", ("ip1",), draining=True), candidate("d2", ())]
    assert not Pairs(GRACE_S).usable(workers, frozenset(), 0.0).closed


@given(
    st.lists(st.tuples(st.sampled_from(("d1", "d2", "d3")), st.sets(st.sampled_from(("ip1", "ip2")))), max_size=8),
    st.sets(st.tuples(st.sampled_from(("p1", "p2")), st.sampled_from(("d1", "d2", "d3")))),
)
def test_refused_pairs_stay_closed_and_proven_ones_open(
    reports: list[tuple[str, set[str]]], refused: set[tuple[str, str]]
):
    """Whatever is reported, and however much time goes by."""
    pairs = Pairs(GRACE_S)
    proven: dict[str, set[str]] = {}
    for turn, (name, incarnations) in enumerate(reports):
        proven[name] = incarnations
        decodes = [candidate(each, tuple(found)) for each, found in sorted(proven.items())]
        usable = pairs.usable([candidate("p1"), candidate("p2"), *decodes], frozenset(refused), float(turn))
        assert usable.closed >= refused
        open_pairs = {(p, d) for d, found in proven.items() for p in ("p1", "p2") if f"i{p}" in found} - refused
        assert not usable.closed & open_pairs
        assert not usable.is_blocked or not open_pairs
