"""When a draining worker sends on what runs."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Draining
from services.worker.drain import Drain, move_time

SECONDS = st.floats(0, 1e4)


@given(now=SECONDS, budget=SECONDS, after=st.none() | SECONDS)
def test_moving_leaves_time_for_the_rest(now: float, budget: float, after: float | None) -> None:
    """Never before it is asked for unless time runs out, never in the last part of the budget, never after it."""
    at = move_time(now, now + budget, after)
    assert now - 1e-6 <= at <= now + budget - min(5.0, budget / 2) + 1e-6
    assert after is None or at <= now + after + 1e-6


async def test_nothing_moves_where_nothing_is_left() -> None:
    """An idle worker is drained at once."""
    drain = Drain("w")
    drain.close()
    await drain.run(time.monotonic() + 60, None, lambda error: 1 / 0)
    assert drain.moved == 0


async def test_what_is_moved_is_counted_and_waited_for() -> None:
    """After the move the drain waits until the moved requests are gone, and tells how many they were."""
    drain = Drain("w")
    drain.occupied(2)
    errors: list[Draining] = []

    def move(error: Draining) -> int:
        errors.append(error)
        asyncio.get_running_loop().call_soon(drain.occupied, 0)
        return 2

    await drain.run(time.monotonic() + 60, 0.0, move)
    assert len(errors) == 1
    assert drain.moved == 2


async def test_a_drain_ends_at_its_deadline() -> None:
    """What never goes away does not hold the process for ever."""
    drain = Drain("w")
    drain.occupied(1)
    await asyncio.wait_for(drain.run(time.monotonic() + 0.05, None, lambda error: 0), 20)
