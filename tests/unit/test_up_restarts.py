"""When `baton up` starts a dead process again."""

from hypothesis import given
from hypothesis import strategies as st

from services.cli.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(quick_s=10, max_quick_deaths=4, first_wait_s=0.5, max_wait_s=10)


def test_waits_double_and_then_the_process_is_given_up() -> None:
    """Three quick deaths are waited out ever longer, the fourth is the last."""
    restarts = Restarts(POLICY)
    assert [restarts.next_wait_s(1.0) for _ in range(4)] == [0.5, 1.0, 2.0, None]
    assert restarts.deaths == 4


def test_a_process_that_was_never_ready_is_given_up_sooner() -> None:
    """What cannot start is reported after its second try, before the user has waited for four."""
    restarts = Restarts(POLICY)
    assert [restarts.next_wait_s(0.0) for _ in range(2)] == [0.5, None]


def test_a_long_life_forgives() -> None:
    """A process that was ready for long starts again soon, however often it died before."""
    restarts = Restarts(POLICY)
    for _ in range(3):
        restarts.next_wait_s(1.0)
    assert restarts.next_wait_s(11.0) == 0.5
    assert restarts.next_wait_s(0.0) == 0.5


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_no_wait_is_longer_than_the_bound(lives: list[float]) -> None:
    """Whatever the history, a wait is positive and bounded, or the process is given up."""
    restarts = Restarts(RestartPolicy(max_quick_deaths=20, max_first_deaths=20))
    for ready_s in lives:
        wait_s = restarts.next_wait_s(ready_s)
        assert wait_s is None or 0 < wait_s <= POLICY.max_wait_s
