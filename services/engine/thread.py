"""The one thread that owns torch and the device inside a worker.

The event loop posts commands into a bounded inbox; the thread handles all of them, then runs one step, and so on; with
nothing to step it sleeps until a command comes. Results go back with `loop.call_soon_threadsafe`. Knows nothing of what
a command or a step is.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.common.errors import QueueFull

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class StepLoop(Protocol[C_contra]):
    """What the thread drives. Both methods run on the engine thread only."""

    def handle(self, command: C_contra) -> None:
        """Applies one command; must not raise for anything that a client can provoke."""
        ...

    def step(self) -> bool:
        """Runs one step; False where there was nothing to do."""
        ...


class EngineThread(Generic[C]):
    """Runs a `StepLoop` until it is stopped.

    `on_failure` is called once, on the engine thread, with an exception that escaped the loop; the thread then ends,
    because its state can no longer be trusted.
    """

    def __init__(
        self, name: str, loop: StepLoop[C], *, max_commands: int, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._loop = loop
        self._on_failure = on_failure
        self._max_commands = max_commands
        self._inbox: queue.Queue[C | None] = queue.Queue()
        self._stopping = threading.Event()
        self._turns = 0
        self._is_busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def post(self, command: C) -> None:
        """Hands a command that brings new work to the thread, without waiting.

        Raises:
            QueueFull: the inbox is full; nothing was posted.
        """
        if self._inbox.qsize() >= self._max_commands:
            message = f"the engine's inbox holds {self._max_commands} commands; retry on another worker"
            raise QueueFull(message, retry_after_s=0.1)
        self._inbox.put_nowait(command)

    def tell(self, command: C) -> None:
        """Hands over a command that must not be lost, about posted work; only a few follow each `post`."""
        self._inbox.put_nowait(command)

    def stop(self, timeout_s: float) -> bool:
        """Asks the thread to end after the current step and waits; False where it did not end in time."""
        self._stopping.set()
        if self._thread.ident is None:
            return True  # it was never started
        self._inbox.put_nowait(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stats(self) -> dict[str, int]:
        """Commands waiting, whether the thread lives and is inside a turn, and turns so far."""
        return {
            "engine_inbox": self._inbox.qsize(),
            "engine_threads": int(self.is_alive),
            "engine_busy": int(self._is_busy),
            "engine_turns": self._turns,
        }

    def _run(self) -> None:
        try:
            has_work = False
            while not self._stopping.is_set():
                self._is_busy = has_work
                self._drain(wait=not has_work)
                has_work = not self._stopping.is_set() and self._loop.step()
                self._turns += 1
                self._is_busy = False
        except BaseException as error:  # noqa: BLE001 - whatever escapes must reach the worker, or requests would hang
            self._on_failure(error)

    def _drain(self, *, wait: bool) -> None:
        """Handles every waiting command; with `wait`, sleeps until at least one came."""
        try:
            command = self._inbox.get() if wait else self._inbox.get_nowait()
            self._is_busy = True
            while command is not None:
                self._loop.handle(command)
                command = self._inbox.get_nowait()
        except queue.Empty:
            pass
