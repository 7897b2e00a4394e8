"""Places on an event loop: bounds, order, time limits, and no place lost whoever leaves when."""

import asyncio
import random

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import QueueExpired, QueueFull
from services.common.line import LineLimits
from services.common.places import Places
from services.common.priority import Priority
from services.common.queue_metrics import QueueMetrics


def make(places: int, max_waiting: int, ttl_s: float = 30.0, registry: CollectorRegistry | None = None) -> Places:
    limits = LineLimits(places=places, max_waiting=max_waiting, ttl_s=ttl_s, aging_s=10.0)
    return Places(limits, QueueMetrics("frontend", registry or CollectorRegistry()), "this test")


async def _hold(
    places: Places, inside: list[int], name: int, leave: asyncio.Event, priority: Priority = Priority.NORMAL
) -> None:
    async with places.hold(priority):
        inside.append(name)
        await leave.wait()


async def _settle() -> None:
    """Lets every task run as far as it gets."""
    for _ in range(5):
        await asyncio.sleep(0)


def _counts(places: Places) -> tuple[int, int]:
    return places.num_held, places.num_waiting


async def test_order_of_arrival_and_bounds() -> None:
    """Two run, two wait in order, the fifth is refused with a hint; places pass on in order."""
    places = make(2, 2)
    inside: list[int] = []
    leave = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(_hold(places, inside, name, leave[name])) for name in range(4)]
    await _settle()
    assert inside == [0, 1]
    assert _counts(places) == (2, 2)
    with pytest.raises(QueueFull) as caught:
        await _hold(places, inside, 4, leave[0])
    assert caught.value.retry_after_s
    leave[1].set()
    await _settle()
    assert inside == [0, 1, 2]
    for event in leave:
        event.set()
    await asyncio.gather(*tasks)
    assert inside == [0, 1, 2, 3]
    assert _counts(places) == (0, 0)


async def test_cancelled_waiter_loses_no_place() -> None:
    """A waiter that leaves, even in the moment it gets its place, leaves the place to the next one."""
    places = make(1, 2)
    inside: list[int] = []
    leave = asyncio.Event()
    tasks = [asyncio.create_task(_hold(places, inside, name, leave)) for name in range(3)]
    await _settle()
    leave.set()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert inside == [0, 2]
    assert _counts(places) == (0, 0)


async def test_failure_inside_frees_the_place() -> None:
    """A request that fails gives its place back."""
    places = make(1, 0)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with places.hold():
                raise RuntimeError
    assert _counts(places) == (0, 0)


async def test_a_high_request_takes_the_place_of_a_low_one_in_a_full_line() -> None:
    """The one that is displaced learns it at once, typed and with a hint; metrics count it by reason and class."""
    registry = CollectorRegistry()
    places = make(1, 1, registry=registry)
    inside: list[int] = []
    leave = asyncio.Event()
    first = asyncio.create_task(_hold(places, inside, 0, leave))
    low = asyncio.create_task(_hold(places, inside, 1, leave, Priority.LOW))
    await _settle()
    high = asyncio.create_task(_hold(places, inside, 2, leave, Priority.HIGH))
    with pytest.raises(QueueFull) as caught:
        await low
    assert caught.value.details == {"reason": "displaced"}
    assert caught.value.retry_after_s
    assert registry.get_sample_value("baton_frontend_shed_total", {"reason": "displaced", "priority": "low"}) == 1
    leave.set()
    await asyncio.gather(first, high)
    assert inside == [0, 2]
    labels = {"priority": "high"}
    assert registry.get_sample_value("baton_frontend_queue_wait_seconds_count", labels) == 1


async def test_who_waits_too_long_is_turned_away_by_the_clock_alone() -> None:
    """A waiter is told when its time is up although nobody leaves and nobody comes."""
    places = make(1, 2, ttl_s=0.05)
    inside: list[int] = []
    leave = asyncio.Event()
    first = asyncio.create_task(_hold(places, inside, 0, leave))
    await _settle()
    with pytest.raises(QueueExpired) as caught:
        await asyncio.wait_for(_hold(places, inside, 1, leave), 10)
    assert caught.value.retry_after_s
    assert _counts(places) == (1, 0)
    leave.set()
    await first


async def test_random_cancellations_lose_no_place() -> None:
    """Two hundred requests, a third of them cancelled at random moments: all others run, and every place comes back."""
    rng = random.Random(7)
    places = make(3, 500)
    ran = 0

    async def one(turns: int) -> None:
        nonlocal ran
        async with places.hold(rng.choice(list(Priority)), rng.randint(1, 3)):
            for _ in range(turns):
                await asyncio.sleep(0)
            ran += 1

    tasks = [asyncio.create_task(one(rng.randint(0, 4))) for _ in range(200)]
    victims = [task for task in tasks if rng.random() < 0.33]
    for victim in victims:
        await asyncio.sleep(0)
        victim.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert ran + cancelled == 200
    assert 0 < cancelled <= len(victims)
    assert _counts(places) == (0, 0)
