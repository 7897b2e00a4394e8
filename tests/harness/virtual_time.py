"""Virtual time: a clock that stands still while anybody works and jumps to the next timer when nobody does.

`run_virtually` runs a coroutine on an event loop with that clock and replaces `time.monotonic` by it, so that leases,
deadlines and pauses of minutes pass in milliseconds. Threads take part: a `VirtualThread` is at work from its start to
its end, except while it is parked in `VirtualClock.wait` or waits for an item of a `VirtualQueue`. Work in the loop's
executor is given a moment of real time before the clock jumps.
"""

import asyncio
import contextvars
import queue
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")
Condition = Callable[[], bool]

_real_monotonic = time.monotonic
# Nothing to do, or a thread that works, for so much real time means that the test is stuck.
STUCK_S = 30.0
_LOOK_S = 0.002
_EXECUTOR_LOOKS = 5


@dataclass(slots=True, eq=False)
class _Parked:
    """A thread that waits until something is true or its time has come."""

    is_true: Condition
    until: float
    woken: threading.Event = field(default_factory=threading.Event)


class VirtualClock:
    """Monotonic seconds. Thread: any."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._parked: dict[threading.Thread, _Parked] = {}

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def monotonic_ns(self) -> int:
        """As `time.monotonic_ns`."""
        return round(self.now * 1e9)

    @property
    def is_busy(self) -> bool:
        """True while some thread is at work."""
        with self._lock:
            return any(thread not in self._parked for thread in self._threads)

    def next_timer(self) -> float:
        """When the first parked thread wakes up by itself; infinite where none does."""
        with self._lock:
            return min((parked.until for parked in self._parked.values()), default=float("inf"))

    def advance(self, moment: float) -> None:
        """Jumps, and wakes the threads whose time has come."""
        with self._lock:
            self.now = max(self.now, moment)
            self._wake(lambda parked: parked.until <= self.now)

    def notify(self) -> None:
        """Something changed; wakes the threads for which it did."""
        with self._lock:
            self._wake(lambda parked: parked.is_true())

    def enter(self, thread: threading.Thread) -> None:
        """A thread begins its work."""
        with self._lock:
            self._threads.add(thread)

    def leave(self, thread: threading.Thread) -> None:
        """A thread has ended."""
        with self._lock:
            self._threads.discard(thread)

    def wait(self, is_true: Condition, timeout_s: float = float("inf")) -> bool:
        """Parks the calling thread until something is true or virtual time is up; False where it is not true."""
        with self._lock:
            if is_true() or timeout_s <= 0:
                return is_true()
            parked = _Parked(is_true, self.now + timeout_s)
            self._parked[threading.current_thread()] = parked
        parked.woken.wait()
        return is_true()

    def sleep(self, seconds: float) -> None:
        """Parks the calling thread for so much virtual time."""
        self.wait(lambda: False, seconds)

    def _wake(self, has_to: Callable[[_Parked], bool]) -> None:
        for thread, parked in list(self._parked.items()):
            if has_to(parked):
                del self._parked[thread]
                parked.woken.set()


class VirtualThread(threading.Thread):
    """A thread that the clock knows; it runs in the context in which it was started."""

    clock: VirtualClock

    def start(self) -> None:
        """As `threading.Thread.start`."""
        self._context = contextvars.copy_context()
        self.clock.enter(self)
        super().start()

    def run(self) -> None:
        """As `threading.Thread.run`."""
        try:
            self._context.run(super().run)
        finally:
            self.clock.leave(self)


class VirtualQueue(queue.Queue):  # type: ignore[type-arg]
    """A queue whose reader is parked while there is nothing."""

    clock: VirtualClock

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `queue.Queue.put`."""
        super().put(item, block, timeout)
        self.clock.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """As `queue.Queue.get`; for one reader."""
        if block:
            self.clock.wait(lambda: bool(self.queue))
        return super().get(False)


class _Selector(selectors.DefaultSelector):
    """Looks for events as ever; where the loop would sleep, time jumps instead."""

    clock: VirtualClock
    executing: Callable[[], int]

    def select(self, timeout: float | None = None) -> list[Any]:
        """As `selectors.BaseSelector.select`; `timeout` is virtual."""
        stuck = _real_monotonic() + STUCK_S
        looks = 0
        end = float("inf") if timeout is None else self.clock.now + timeout
        while True:
            # In this order: whoever is no longer busy has told the loop what it had to tell.
            is_busy = self.clock.is_busy
            if found := super().select(0):
                return found
            if end <= self.clock.now:
                return []
            if is_busy or (self.executing() and looks < _EXECUTOR_LOOKS):
                looks += not is_busy
            else:
                moment = min(end, self.clock.next_timer())
                if moment < float("inf"):
                    self.clock.advance(moment)
                    looks = 0
                    continue
            if found := super().select(_LOOK_S):
                return found
            assert _real_monotonic() < stuck, "a thread works for ever" if is_busy else "nothing is left to wait for"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on a virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self._executing: set[Any] = set()
        self._virtual = clock
        selector = _Selector()
        selector.clock, selector.executing = clock, lambda: len(self._executing)
        super().__init__(selector)

    def time(self) -> float:
        """The clock's."""
        return self._virtual.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """As the loop's; time gives it a moment."""
        running = super().run_in_executor(executor, func, *args)
        self._executing.add(running)
        running.add_done_callback(self._executing.discard)
        return running


def threading_for(clock: VirtualClock) -> Any:
    """What a module that imports `threading` gets instead: threads that the clock knows."""
    return _Stand(threading, Thread=type("Thread", (VirtualThread,), {"clock": clock}))


def queue_for(clock: VirtualClock) -> Any:
    """What a module that imports `queue` gets instead: queues whose readers are parked."""
    return _Stand(queue, Queue=type("Queue", (VirtualQueue,), {"clock": clock}))


class _Stand:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def virtual_time(clock: VirtualClock) -> Iterator[None]:
    """Replaces the monotonic clock of this process."""
    with mock.patch("time.monotonic", clock.monotonic), mock.patch("time.monotonic_ns", clock.monotonic_ns):
        yield


def run_virtually(main: Callable[[VirtualClock], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine on virtual time to its end."""
    clock = VirtualClock()
    with virtual_time(clock), asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        return runner.run(main(clock))
