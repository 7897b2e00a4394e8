"""Whether a peer hears this process, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

from services.common.echo import Echo
from services.common.errors import DeadlineExceeded, Overloaded, PeerUnreachable
from tests.harness.virtual_time import VirtualClock, run_virtually

HEARTBEAT_S = 0.5


def missed_after(seconds: list[float], ask: Callable[[int], Awaitable[None]]) -> list[int]:
    """Heartbeats missed at these moments; `ask` is told how often it was called before."""
    times = iter(range(10**6))

    async def main(clock: VirtualClock) -> list[int]:
        echo, began = Echo(lambda: ask(next(times)), HEARTBEAT_S), clock.now
        echo.start()
        seen: list[int] = []
        for moment in seconds:
            await asyncio.sleep(began + moment - clock.now)
            seen.append(echo.missed)
        await echo.close()
        return seen

    return run_virtually(main)


def test_a_peer_that_answers_misses_nothing():
    """Also where it takes most of a heartbeat each time."""

    async def ask(_: int) -> None:
        await asyncio.sleep(0.8 * HEARTBEAT_S)

    assert missed_after([0.1, 0.9, 5.0, 50.0], ask) == [0, 0, 0, 0]


def test_every_heartbeat_without_an_answer_counts_until_one_comes():
    """The first call is answered after 1.7 s, all others at once."""

    async def ask(times: int) -> None:
        await asyncio.sleep(0 if times else 1.7)

    assert missed_after([0.4, 0.6, 1.1, 1.6, 1.8, 9.0], ask) == [0, 1, 2, 3, 0, 0]


def test_calls_that_never_arrive_count_on():
    """One after the other runs into its deadline or finds no connection: together they are one silence."""

    async def ask(times: int) -> None:
        await asyncio.sleep(1.0)
        raise DeadlineExceeded("late") if times % 2 else PeerUnreachable("away")

    assert missed_after([0.6, 1.1, 4.1], ask) == [1, 2, 8]


def test_an_error_of_the_peer_is_an_answer():
    """Who refuses has heard the call."""

    async def ask(_: int) -> None:
        raise Overloaded("too many calls", retry_after_s=1.0)

    assert missed_after([0.6, 5.0], ask) == [0, 0]


def test_time_in_which_this_process_stood_still_does_not_count():
    """The answer came meanwhile and has yet to be read."""

    async def main(clock: VirtualClock) -> int:
        answer = asyncio.get_running_loop().create_future()
        echo = Echo(lambda: answer, HEARTBEAT_S)
        echo.start()
        await asyncio.sleep(0.1)
        clock.advance(clock.now + 10.0)
        await asyncio.sleep(0.01)
        missed = echo.missed
        answer.set_result(None)
        await echo.close()
        return missed

    assert run_virtually(main) == 0


def test_closing_ends_the_call():
    """Nothing is asked any more, and nothing is left."""

    async def main(clock: VirtualClock) -> set[str]:
        before = asyncio.all_tasks()
        echo = Echo(lambda: asyncio.sleep(3600), HEARTBEAT_S)
        echo.start()
        await asyncio.sleep(5)
        await echo.close()
        await asyncio.sleep(0)
        return {task.get_name() for task in asyncio.all_tasks() - before}

    assert run_virtually(main) == set()
