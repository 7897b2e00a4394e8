"""When an engine thread counts as stalled."""

from hypothesis import given
from hypothesis import strategies as st

from services.worker.watchdog import Watchdog


def test_the_same_turn_for_too_many_looks_is_a_stall():
    """And said once."""
    watchdog = Watchdog(3)
    assert [watchdog.look(7, is_busy=True) for _ in range(5)] == [False, False, False, True, False]
    assert watchdog.is_stalled


def test_a_turn_that_ends_after_all_ends_the_stall():
    """The worker is live again."""
    watchdog = Watchdog(1)
    watchdog.look(7, is_busy=True)
    assert watchdog.look(7, is_busy=True)
    assert watchdog.look(8, is_busy=True)
    assert not watchdog.is_stalled


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=50), st.integers(1, 6))
def test_a_thread_that_moves_or_rests_is_never_stalled(steps: list[tuple[bool, bool]], looks: int):
    """Only `looks` looks in a row at one busy turn, after the first one, are a stall."""
    watchdog = Watchdog(looks)
    turns, same = 0, 0
    for has_moved, is_busy in [(True, True), *steps]:
        turns += has_moved
        same = same + 1 if is_busy and not has_moved else 0
        watchdog.look(turns, is_busy=is_busy)
        assert watchdog.is_stalled == (same >= looks)
