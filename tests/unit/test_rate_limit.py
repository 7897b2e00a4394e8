"""How often each caller may call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import rate_limit
from services.common.rate_limit import RateLimit

STEPS = st.lists(st.tuples(st.floats(0, 3), st.sampled_from("abc")), max_size=200)


@given(STEPS, st.floats(0.1, 50), st.integers(1, 20))
def test_nobody_gets_more_than_burst_and_rate(steps: list[tuple[float, str]], per_s: float, burst: int) -> None:
    """Within any time, a caller's admitted calls are at most the burst plus what the rate gives."""
    limit, now = RateLimit(per_s, burst), 0.0
    admitted: dict[str, list[float]] = {}
    for pause, caller in steps:
        now += pause
        if limit.take(caller, now) == 0.0:
            admitted.setdefault(caller, []).append(now)
    for times in admitted.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                allowed = burst + (times[last] - times[first]) * per_s
                assert last - first + 1 <= allowed + 1e-6


@given(STEPS, st.floats(0.1, 50), st.integers(1, 20))
def test_who_waits_as_told_is_admitted(steps: list[tuple[float, str]], per_s: float, burst: int) -> None:
    """The hint is long enough, and a refused call costs nothing."""
    limit, now = RateLimit(per_s, burst), 0.0
    for pause, caller in steps:
        now += pause
        wait_s = limit.take(caller, now)
        if wait_s:
            assert wait_s <= 1 / per_s + 1e-6
            now += wait_s
            assert limit.take(caller, now) == 0.0


def test_the_callers_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of names does not fill the memory; those who called last are kept."""
    monkeypatch.setattr(rate_limit, "MAX_CALLERS", 3)
    limit = RateLimit(1.0, 1)
    for caller in "abcdef":
        assert limit.take(caller, 0.0) == 0.0
    assert len(limit) == 3
    assert limit.take("f", 0.0) > 0.0
