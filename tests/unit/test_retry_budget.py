"""The retry budget keeps what it promises, whatever happens in whichever order."""

from hypothesis import given
from hypothesis import strategies as st

from services.frontend.retry_budget import SLICE_S, RetryBudget

WINDOW_S = 4.0
EVENTS = st.lists(st.tuples(st.sampled_from(["begin", "end", "take"]), st.floats(0, 1.5)), max_size=120)


def _play(budget: RetryBudget, events: list[tuple[str, float]]) -> tuple[list[tuple[float, float]], list[float]]:
    """Runs the events, each so many seconds after the one before; gives the requests [begin, end] and the grants."""
    now = 100.0
    running: list[float] = []
    ended: list[tuple[float, float]] = []
    granted: list[float] = []
    for what, later in events:
        now += later
        if what == "begin":
            budget.began()
            running.append(now)
        elif what == "end" and running:
            budget.ended(now)
            ended.append((running.pop(), now))
        elif what == "take" and budget.take(now):
            granted.append(now)
    return [*ended, *((begin, float("inf")) for begin in running)], granted


@given(EVENTS, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.25, 1.0]))
def test_repetitions_stay_within_share_and_floor(events, ratio, per_second):
    """In every window there are at most `ratio` repetitions for each request that ran in it, plus the floor."""
    requests, granted = _play(RetryBudget(ratio, per_second, window_s=WINDOW_S), events)
    for last in granted:
        taken = sum(1 for at in granted if last - WINDOW_S < at <= last)
        # What ended just before the window may still count, by no more than a slice.
        ran = sum(1 for begin, end in requests if begin <= last and end > last - WINDOW_S - SLICE_S)
        assert taken <= ratio * ran + per_second * WINDOW_S


@given(EVENTS)
def test_budget_recovers_after_a_window(events):
    """However much was taken, a window later the floor is there again."""
    budget = RetryBudget(0.0, 0.5, window_s=WINDOW_S)
    _play(budget, events)
    later = 100.0 + sum(gap for _, gap in events) + WINDOW_S + SLICE_S + 0.01
    assert [budget.take(later) for _ in range(3)] == [True, True, False]
    assert budget.stats()["retries_refused"] >= 1


def test_every_running_request_can_move_once():
    """With the default share a worker's death never exhausts the budget by moving each of its requests once."""
    budget = RetryBudget(1.0, 0.0)
    for _ in range(1000):
        budget.began()
    assert all(budget.take(5.0) for _ in range(1000))
    assert not budget.take(5.0)
