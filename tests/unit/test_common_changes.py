"""Waiting for changes without missing one."""

import asyncio

from services.common.changes import Changes


async def test_a_change_wakes_every_waiter():
    """All of them, once."""
    changes = Changes()
    waiters = [asyncio.create_task(changes.wait(changes.count, 10)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.notify()
    assert await asyncio.gather(*waiters) == [True, True, True]


async def test_a_change_before_the_wait_is_not_missed():
    """The count tells."""
    changes = Changes()
    seen = changes.count
    changes.notify()
    assert await changes.wait(seen, 10)


async def test_no_change_ends_with_the_time():
    """And says so."""
    changes = Changes()
    assert not await changes.wait(changes.count, 0.01)


async def test_a_closed_one_never_waits():
    """Neither for changes nor for its end."""
    changes = Changes()
    waiter = asyncio.create_task(changes.wait(changes.count))
    await asyncio.sleep(0)
    changes.close()
    async with asyncio.timeout(10):
        assert await waiter
        assert await changes.wait(changes.count)
        assert await changes.wait_closed(10)


async def test_waiting_for_the_end_is_not_ended_by_changes():
    """Only by the time or by the end."""
    changes = Changes()
    waiter = asyncio.create_task(changes.wait_closed(0.05))
    for _ in range(3):
        await asyncio.sleep(0)
        changes.notify()
    assert not await waiter
