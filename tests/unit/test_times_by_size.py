"""What is remembered of how long things took."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.times_by_size import ENOUGH, TimesBySize
from services.common.types import SizedTime

TIMES = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 10**9)), max_size=60)


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(TIMES)
def test_points_are_times_that_were_measured(times: list[tuple[int, int]]) -> None:
    """Each point is one of the times, one for each size class that was measured often enough, in order of size."""
    known = TimesBySize(clock=Clock())
    for tokens, time_ns in times:
        known.add(tokens, time_ns)
    points = known.points
    assert {SizedTime(*each) for each in times} >= set(points)
    classes = [tokens.bit_length() for tokens, _ in times]
    assert [point.tokens.bit_length() for point in points] == sorted(
        size for size in set(classes) if classes.count(size) >= ENOUGH
    )


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=7), st.integers(10**6, 10**9))
def test_an_outlier_tells_nothing(times: list[int], slow: int) -> None:
    """However slow one turn was, what is told lies within the others."""
    known = TimesBySize()
    for time_ns in (*times, slow):
        known.add(8, time_ns)
    (point,) = known.points
    assert min(times) <= point.time_ns <= max(times)


def test_only_the_latest_times_count() -> None:
    """A worker that has become faster is soon known to be."""
    known = TimesBySize()
    for time_ns in (*[900] * 50, *[100] * 8):
        known.add(1, time_ns)
    assert known.points == (SizedTime(1, 100),)


def test_a_size_that_does_not_occur_becomes_faster_with_those_that_do() -> None:
    """What was measured while the machine was busy is not held against a size for ever, nor made worse by others."""
    clock = Clock()
    known = TimesBySize(clock=clock)
    for tokens in (1, 16, 64):
        clock.now += 1
        for _ in range(ENOUGH):
            known.add(tokens, 100 + tokens)
    clock.now += 1
    for time_ns in (*[500] * 15, *[10] * 15):
        known.add(1, time_ns)
        if time_ns == 500:
            assert known.points[1:] == (SizedTime(16, 116), SizedTime(64, 164))
    assert known.points == (SizedTime(1, 10), SizedTime(16, round(1160 / 101)), SizedTime(64, round(1640 / 101)))
    for _ in range(8):
        known.add(64, 30)
    assert known.points[2] == SizedTime(64, 30)


@given(TIMES)
def test_no_size_is_taken_for_slower_than_it_was(times: list[tuple[int, int]]) -> None:
    """Whatever others took since, a point is at most the longest of its class."""
    clock = Clock()
    known = TimesBySize(clock=clock)
    for tokens, time_ns in times:
        clock.now += 1
        known.add(tokens, time_ns)
    for point in known.points:
        of_class = [time_ns for tokens, time_ns in times if tokens.bit_length() == point.tokens.bit_length()]
        assert 0 <= point.time_ns <= max(of_class)


def test_a_size_that_is_heard_of_no_more_is_forgotten() -> None:
    """After the time to keep it a class is unknown, also to its next time, and known again after enough of them."""
    clock = Clock()
    known = TimesBySize(kept_s=60.0, clock=clock)
    for _ in range(ENOUGH):
        known.add(100, 5)
    clock.now = 60.0
    assert known.points == (SizedTime(100, 5),)
    clock.now = 61.0
    assert known.points == ()
    for _ in range(ENOUGH - 1):
        known.add(100, 7)
    assert known.points == ()
    known.add(100, 7)
    assert known.points == (SizedTime(100, 7),)
