"""The hint when to come back: right within a factor on a simulated load, bounded, never from old news."""

import random
import statistics

import pytest

from services.common.drain_rate import MAX_HINT_S, MIN_HINT_S, UNKNOWN_HINT_S, DrainRate
from services.common.line import Line, LineLimits, Verdict
from services.common.priority import Priority


@pytest.mark.parametrize(("servers", "service_s"), [(1, 0.5), (4, 2.0), (16, 0.8)])
def test_the_hint_is_right_on_a_simulated_load(servers, service_s):
    """At three times the load that can be served, the hint is within a factor of 2 of what the last in line waits."""
    rng = random.Random(servers)
    line = Line(LineLimits(places=servers, max_waiting=4 * servers, ttl_s=1e9, aging_s=10.0))
    ends: dict[int, float] = {}
    waits, hints = [], []
    now = 0.0
    for key in range(300 * servers):
        now += rng.expovariate(3 * servers / service_s)
        while ends and min(ends.values()) <= now:
            done = min(ends, key=ends.__getitem__)
            at = ends.pop(done)
            for outcome in line.leave(done, at):
                ends[outcome.key] = at + rng.expovariate(1 / service_s)
                waits.append(outcome.waited_s)
        for outcome in line.arrive(key, Priority.NORMAL, now):
            if outcome.verdict is Verdict.ADMITTED:
                ends[key] = now + rng.expovariate(1 / service_s)
            else:
                hints.append(line.retry_after_s(now))
    waited, hinted = statistics.median(waits[len(waits) // 3 :]), statistics.median(hints[len(hints) // 3 :])
    assert waited / 2 < hinted < waited * 2
    late = hints[len(hints) // 3 :]
    assert sum(waited / 3 < hint < waited * 3 for hint in late) > 0.9 * len(late)


def test_unknown_and_bounded():
    """Without a measurement the hint is a constant; with one it stays within its bounds."""
    rate = DrainRate()
    assert rate.retry_after_s(100, 0.0) == UNKNOWN_HINT_S
    for i in range(10):
        rate.note(i * 1e-4)
    assert rate.retry_after_s(1, 1e-3) == MIN_HINT_S
    assert rate.retry_after_s(10**9, 1e-3) == MAX_HINT_S


def test_a_queue_that_stalls_gives_longer_hints():
    """While nobody leaves, the rate falls and the hint grows."""
    rate = DrainRate()
    for i in range(20):
        rate.note(float(i) / 10)
    soon, later = rate.retry_after_s(10, 2.0), rate.retry_after_s(10, 12.0)
    assert later > 5 * soon


def test_departures_of_an_earlier_burst_do_not_count():
    """After a pause longer than the window the rate is measured anew."""
    rate = DrainRate(window_s=30.0)
    for i in range(20):
        rate.note(float(i))
    rate.note(100.0)
    assert rate.per_second(100.0) is None
    rate.note(100.5)
    assert rate.per_second(101.0) == pytest.approx(1.0)
