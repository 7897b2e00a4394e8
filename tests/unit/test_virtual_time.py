"""The virtual clock of the fault harness: time passes only where nobody works."""

import asyncio
import time

import pytest

from services.kvtransfer.transport.base import Meeting
from tests.harness.memory_rpc import Network
from tests.harness.virtual_time import VirtualClock, queue_for, run_virtually, threading_for
from tests.harness.virtual_transport import VirtualExchange

_real = time.perf_counter


def test_an_hour_passes_at_once():
    """Sleeping takes virtual time, and time.monotonic and the loop agree about it."""

    async def main(clock: VirtualClock) -> tuple[float, float]:
        before = time.monotonic(), asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        return time.monotonic() - before[0], asyncio.get_running_loop().time() - before[1]

    began = _real()
    assert run_virtually(main) == pytest.approx((3600, 3600))
    assert _real() - began < 30


def test_time_waits_for_a_thread_at_work():
    """While a thread works the clock stands still, and what it does comes before any later timer."""

    async def main(clock: VirtualClock) -> list[str]:
        loop, order = asyncio.get_running_loop(), []
        inbox = queue_for(clock).Queue()
        done = loop.create_future()

        def work() -> None:
            assert inbox.get() == "begin"
            began = clock.now
            while _real() < until:
                pass
            assert clock.now == began
            loop.call_soon_threadsafe(order.append, "work")
            clock.sleep(5)
            loop.call_soon_threadsafe(order.append, "slept")
            loop.call_soon_threadsafe(done.set_result, None)

        threading_for(clock).Thread(target=work, daemon=True).start()
        until = _real() + 0.1
        loop.call_later(1, order.append, "1 s")
        loop.call_later(10, order.append, "10 s")
        inbox.put("begin")
        await done
        await asyncio.sleep(20)
        return order

    assert run_virtually(main) == ["work", "1 s", "slept", "10 s"]


def test_a_pair_whose_process_is_gone_fails_at_once():
    """A receive that waits for a process that is cut off ends now, not at its timeout."""

    async def main(clock: VirtualClock) -> float:
        network = Network()
        exchange = VirtualExchange(clock, network)
        loop, failed = asyncio.get_running_loop(), asyncio.Event()

        def side(rank: int) -> None:
            link = exchange.open(Meeting(rank=rank, name="pair", keys=None), 5)  # type: ignore[arg-type]
            if rank == 1:
                with pytest.raises(Exception, match="aborted"):
                    link.receive(None, 60)  # type: ignore[arg-type]
                loop.call_soon_threadsafe(failed.set)

        for rank, name in enumerate(("source", "sink")):
            with network.as_process(name):
                threading_for(clock).Thread(target=side, args=(rank,), daemon=True).start()
        await asyncio.sleep(1)
        began = time.monotonic()
        exchange.cut("source")
        await failed.wait()
        return time.monotonic() - began

    assert run_virtually(main) < 0.1
