"""Which failures are answered by a move, when it is paused, and when it is not begun."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import (
    BatonError,
    ChannelBroken,
    Internal,
    KvCorrupt,
    NoWorker,
    PeerUnreachable,
    QueueFull,
    StepFailed,
    Unservable,
)
from services.common.types import Load, Tier
from services.frontend.fallback import Fallback, fallback_of
from services.frontend.first_token_times import ENOUGH, FirstTokenTimes
from services.frontend.recovery import NOT_MOVED, Recovery
from services.frontend.retry_budget import RetryBudget
from services.frontend.router import Route
from services.frontend.routing.candidate import Candidate, Snapshot
from tests.harness.workers import worker_info


def _candidate(name: str, tier: Tier, *, draining: bool = False) -> Candidate:
    return Candidate(worker=worker_info(name, tier), load=Load(draining=draining))


P0, P1 = (_candidate(f"p{place}", Tier.PREFILL) for place in range(2))
D0, D1 = (_candidate(f"d{place}", Tier.DECODE) for place in range(2))
FIRST = Route(prefill=P0, decode=D0)
WORKERS = {"p0", "d0"}


def _recovery(max_moves: int = 3, per_second: float = 100.0) -> Recovery:
    return Recovery(max_moves, RetryBudget(0.0, per_second))


def _pause(recovery: Recovery, route: Route, left_s: float = 60.0, least_s: float = 0.0) -> float:
    return recovery.pause_s(route, left_s=left_s, least_s=least_s, jitter=0.5)


def test_error_that_nobody_can_help_is_not_moved():
    """An error of the class never-retry ends the request at once and costs no budget."""
    recovery = _recovery(per_second=0.0)
    with pytest.raises(Internal) as caught:
        recovery.move(Internal("bug"), WORKERS, 0.0)
    assert NOT_MOVED not in caught.value.details


def test_refused_move_says_why():
    """Used-up moves and a used-up budget end the request with its own cause, and the reason in the details."""
    for recovery, reason in ((_recovery(max_moves=0), "max_moves"), (_recovery(per_second=0.0), "retry_budget")):
        cause = PeerUnreachable("gone")
        with pytest.raises(PeerUnreachable) as caught:
            recovery.move(cause, WORKERS, 0.0)
        assert caught.value is cause
        assert caught.value.details[NOT_MOVED] == reason


def test_a_second_failed_step_is_the_last_one():
    """A request that was in two steps that failed ends for good, however many moves it has left."""
    recovery = _recovery(max_moves=10)
    recovery.move(StepFailed("raised"), WORKERS, 0.0)
    recovery.move(PeerUnreachable("gone"), WORKERS, 0.0)
    with pytest.raises(Unservable) as caught:
        recovery.move(StepFailed("raised"), WORKERS, 0.0)
    assert caught.value.details[NOT_MOVED] == "failed_steps"


def test_only_the_same_workers_are_waited_for():
    """A route with a fresh worker is taken at once; one that has failed entirely only after a pause."""
    recovery = _recovery()
    assert _pause(recovery, FIRST) == 0.0
    recovery.move(PeerUnreachable("gone"), WORKERS, 0.0)
    assert _pause(recovery, Route(prefill=P0, decode=D1)) == 0.0
    assert _pause(recovery, FIRST) > 0.0
    assert recovery.avoided == {"p0", "d0"}


def test_workers_whose_channel_broke_are_avoided():
    """They have tried again among themselves before they say so."""
    recovery = _recovery()
    recovery.move(ChannelBroken("nothing came"), WORKERS, 0.0)
    assert recovery.avoided == {"p0", "d0"}


@given(st.integers(1, 20), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_and_are_bounded(moves, jitter):
    """The pause is between half and all of a time that doubles with every move, never above two seconds."""
    recovery = _recovery(max_moves=moves)
    for _ in range(moves):
        recovery.move(KvCorrupt("differs"), WORKERS, 0.0)
    pause = recovery.pause_s(FIRST, left_s=60.0, least_s=0.0, jitter=jitter)
    longest = min(2.0, 0.1 * 2 ** (moves - 1))
    assert longest / 2 <= pause <= longest


def test_hint_of_a_full_worker_is_kept():
    """A worker that said when to come back is not asked sooner."""
    recovery = _recovery()
    recovery.move(QueueFull("full", retry_after_s=1.5), WORKERS, 0.0)
    assert _pause(recovery, FIRST) == 1.5


@pytest.mark.parametrize(("left_s", "least_s"), [(0.05, 0.0), (2.0, 1.99), (1.0, 3.0)])
def test_move_without_the_time_for_it_is_not_begun(left_s: float, least_s: float):
    """Where pause and fastest known first token exceed the time left, the request ends with its own cause."""
    recovery = _recovery()
    cause = PeerUnreachable("gone")
    recovery.move(cause, WORKERS, 0.0)
    with pytest.raises(PeerUnreachable) as caught:
        _pause(recovery, FIRST, left_s, least_s)
    assert caught.value is cause
    assert caught.value.details[NOT_MOVED] == "deadline"


def test_no_worker_left_means_the_first_cause():
    """A request whose workers died and that finds no others fails with what happened to it, not with NoWorker."""
    recovery = _recovery()
    missing: BatonError = NoWorker("nobody")
    assert recovery.no_route(missing) is missing
    cause = PeerUnreachable("gone")
    recovery.move(cause, WORKERS, 0.0)
    assert recovery.no_route(missing) is cause


def test_no_worker_left_tells_when_to_come_back():
    """The first cause takes the hint of the missing workers where it has none of its own."""
    recovery = _recovery()
    recovery.move(PeerUnreachable("gone"), WORKERS, 0.0)
    assert recovery.no_route(NoWorker("nobody", retry_after_s=1.5)).retry_after_s == 1.5


@given(st.lists(st.floats(0.001, 10), max_size=400), st.integers(1, 4000))
def test_first_token_times_are_a_quantile_of_the_latest(times, tokens):
    """Too few times say nothing; else the answer is one of the latest, at its place in their order."""
    known = FirstTokenTimes()
    for seconds in times:
        known.add(tokens, seconds)
    latest = sorted(times[-256:])
    if len(latest) < ENOUGH:
        assert known.quantile(tokens, 0.95) is None
        assert known.fastest(tokens) == 0.0
    else:
        assert known.quantile(tokens, 0.95) == latest[int(0.95 * len(latest))]
        assert known.fastest(tokens) == latest[0]
    assert known.quantile(4 * tokens, 0.95) is None


def test_fallback_is_named_by_its_reason():
    """Decode running a prompt counts as a fallback only where a prefill worker should have, with the reason."""
    everyone = Snapshot(candidates=(D0, P0))
    leaving = Snapshot(candidates=(D0, _candidate("p0", Tier.PREFILL, draining=True)))
    alone = Route(decode=D0)
    assert fallback_of(FIRST, everyone, is_begun=False) is Fallback.NONE
    assert fallback_of(Route(prefill=P0), everyone, is_begun=False) is Fallback.NONE
    assert fallback_of(alone, leaving, is_begun=False) is Fallback.NO_PREFILL_WORKER
    assert fallback_of(alone, everyone, is_begun=False) is Fallback.NO_COMPATIBLE_PREFILL_WORKER
    unproven = Snapshot(candidates=(D0, P0), is_unproven=True)
    assert fallback_of(alone, unproven, is_begun=False) is Fallback.NO_PROVEN_CHANNEL
    assert fallback_of(alone, everyone, is_begun=True) is Fallback.MIGRATION
    colocated = Route(decode=_candidate("c0", Tier.COLOCATED))
    assert fallback_of(colocated, everyone, is_begun=False) is Fallback.NONE
