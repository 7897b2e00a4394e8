"""The line for places: order, bounds, aging, time limits; every arrival gets exactly one verdict."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.line import Line, LineLimits, Outcome, Verdict
from services.common.priority import Priority, rank

AGING_S = 10.0


def make(places: int = 1, max_waiting: int = 3, ttl_s: float = 100.0) -> Line:
    return Line(LineLimits(places=places, max_waiting=max_waiting, ttl_s=ttl_s, aging_s=AGING_S))


def verdicts(outcomes: list[Outcome]) -> list[tuple[int, Verdict]]:
    return [(outcome.key, outcome.verdict) for outcome in outcomes]


def test_higher_classes_go_first_and_classes_in_order_of_arrival():
    """A free place goes to the highest class that waits, within a class to who came first."""
    line = make(max_waiting=9)
    line.arrive(0, Priority.LOW, 0.0)
    waiting = [Priority.NORMAL, Priority.HIGH, Priority.LOW, Priority.HIGH, Priority.NORMAL]
    for key, priority in enumerate(waiting, start=1):
        assert line.arrive(key, priority, 0.0) == []
    served = []
    for _ in waiting:
        (outcome,) = line.leave(served[-1] if served else 0, 1.0)
        served.append(outcome.key)
    assert served == [2, 4, 1, 5, 3]


def test_a_full_line_makes_room_for_a_higher_class_only():
    """The newcomer takes the place of the youngest of the lowest class; among equals it is the newcomer who goes."""
    line = make(max_waiting=2)
    line.arrive(0, Priority.LOW, 0.0)
    line.arrive(1, Priority.LOW, 0.0)
    line.arrive(2, Priority.LOW, 1.0)
    assert verdicts(line.arrive(3, Priority.LOW, 2.0)) == [(3, Verdict.FULL)]
    assert verdicts(line.arrive(4, Priority.HIGH, 2.0)) == [(2, Verdict.DISPLACED)]
    assert verdicts(line.arrive(5, Priority.NORMAL, 2.0)) == [(1, Verdict.DISPLACED)]
    assert verdicts(line.arrive(6, Priority.NORMAL, 2.0)) == [(6, Verdict.FULL)]


def test_who_has_waited_long_is_not_displaced():
    """A low request that has gained two classes by waiting keeps its place in a full line."""
    line = make(max_waiting=1)
    line.arrive(0, Priority.LOW, 0.0)
    line.arrive(1, Priority.LOW, 0.0)
    assert verdicts(line.arrive(2, Priority.HIGH, 2 * AGING_S + 1)) == [(2, Verdict.FULL)]


def test_nobody_waits_longer_than_the_time_limit():
    """Who has waited as long as it may is turned away at that moment, whatever its class; the younger ones stay."""
    line = make(ttl_s=5.0)
    line.arrive(0, Priority.LOW, 0.0)
    line.arrive(1, Priority.HIGH, 0.0)
    line.arrive(2, Priority.LOW, 1.0)
    assert line.next_expiry() == 5.0
    assert line.expire(4.9) == []
    assert verdicts(line.leave(0, 5.5)) == [(1, Verdict.EXPIRED), (2, Verdict.ADMITTED)]


def test_who_needs_many_places_is_not_overtaken():
    """The first in line gets its places as they come free; a smaller one behind it does not slip by."""
    line = make(places=3)
    line.arrive(0, Priority.NORMAL, 0.0, count=2)
    assert line.arrive(1, Priority.NORMAL, 1.0, count=3) == []
    assert line.arrive(2, Priority.NORMAL, 2.0, count=1) == []
    assert verdicts(line.leave(0, 3.0)) == [(1, Verdict.ADMITTED)]
    assert verdicts(line.leave(1, 4.0)) == [(2, Verdict.ADMITTED)]


def test_places_turned_down_go_to_the_next():
    """When the first in line leaves it, those behind get what it waited for."""
    line = make(places=2)
    line.arrive(0, Priority.NORMAL, 0.0)
    line.arrive(1, Priority.NORMAL, 1.0, count=2)
    line.arrive(2, Priority.NORMAL, 2.0)
    assert verdicts(line.leave(1, 3.0)) == [(2, Verdict.ADMITTED)]


steps = st.lists(
    st.tuples(st.floats(0.0, 8.0), st.sampled_from(Priority), st.integers(1, 3), st.sampled_from("aaald")),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, places=st.integers(1, 4), max_waiting=st.integers(0, 6), ttl_s=st.floats(1.0, 40.0))
def test_every_arrival_gets_one_verdict_within_bounds(steps, places, max_waiting, ttl_s):
    """Whatever comes: bounds hold, each arrival gets at most one verdict and, in the end, all who stayed get one."""
    line = make(places, max_waiting, ttl_s)
    now, seen, gone, holding, known = 0.0, {}, set(), {}, {}

    def note(outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            assert outcome.key not in seen
            assert outcome.key not in gone
            seen[outcome.key] = outcome.verdict
            if outcome.verdict is Verdict.ADMITTED:
                assert outcome.waited_s < ttl_s
                holding[outcome.key] = min(known[outcome.key], places)
        assert line.num_held == sum(holding.values()) <= places
        assert line.num_waiting <= max_waiting

    for key, (pause, priority, count, action) in enumerate(steps):
        now += pause
        if action == "a":
            known[key] = count
            note(line.arrive(key, priority, now, count))
        elif action == "l" and holding:
            first = next(iter(holding))
            del holding[first]
            note(line.leave(first, now))
        elif action == "d" and (waiting := [k for k in known if k not in seen and k not in gone]):
            gone.add(waiting[0])
            note(line.leave(waiting[0], now))
    while holding:
        first = next(iter(holding))
        del holding[first]
        note(line.leave(first, now))
    assert seen.keys() | gone == known.keys()
    assert line.num_waiting == line.num_held == 0


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.floats(0.0, 3.0), st.sampled_from(Priority)), min_size=1, max_size=80),
    service_s=st.floats(0.5, 3.0),
)
def test_nobody_is_overtaken_by_who_comes_much_later(arrivals, service_s):
    """No starvation: whoever is served before a request came at most `aging_s` per class of difference after it."""
    line = make(max_waiting=1000, ttl_s=1e9)
    now, arrived, served, current = 0.0, {}, [], None
    free_at = 0.0

    def serve(outcomes: list[Outcome]) -> None:
        nonlocal current
        for outcome in outcomes:
            current = outcome.key
            served.append(outcome.key)

    for key, (pause, priority) in enumerate(arrivals):
        now += pause
        while current is not None and free_at <= now:
            serve(line.leave(current, free_at))
            free_at += service_s
        if current is None:
            free_at = now + service_s
        arrived[key] = (now, priority)
        serve(line.arrive(key, priority, now))
    while len(served) < len(arrivals):
        serve(line.leave(current, max(now, free_at)))
        free_at += service_s
    for position, key in enumerate(served):
        came, priority = arrived[key]
        for earlier in served[:position]:
            other_came, other = arrived[earlier]
            assert other_came <= came + max(0, other - priority) * AGING_S + 1e-6


@given(st.sampled_from(Priority), st.sampled_from(Priority), st.floats(0, 100), st.floats(0, 100))
def test_rank_is_priority_that_grows_with_waiting(first, second, came_first, came_second):
    """Comparing ranks is comparing class plus waited time in units of the aging, at any moment."""
    now = 200.0
    aged = [priority + (now - came) / AGING_S for priority, came in ((first, came_first), (second, came_second))]
    if abs(aged[0] - aged[1]) > 1e-6:
        is_before = rank(first, came_first, AGING_S) < rank(second, came_second, AGING_S)
        assert is_before == (aged[0] > aged[1])
