"""One process of a local cluster over all its restarts: starts it, watches its health, starts it again, stops it."""

import asyncio
import contextlib
import enum
import os
import pathlib
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from services.cli.cluster_plan import ProcessPlan
from services.cli.health import watch_health
from services.cli.restarts import RestartPolicy, Restarts
from services.common import leash

_USAGE_ERROR = 2  # wrong settings: starting again cannot help
_LOG_TAIL_LINES = 12


class State(enum.Enum):
    """What a launched process does."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    WAITING = "restarting"
    GIVEN_UP = "given up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Change:
    """A process's state changed; `reason` says why where that is not obvious."""

    process: str
    state: State
    reason: str = ""


class Launched:
    """Runs one process until it is stopped or given up.

    `report` is called on the event loop with every change of state. The process's output goes to `log_path`, which is
    begun anew.
    """

    def __init__(
        self, plan: ProcessPlan, log_path: pathlib.Path, policy: RestartPolicy, report: Callable[[Change], None]
    ) -> None:
        self.plan = plan
        self.log_path = log_path
        self.state = State.STARTING
        self._report = report
        self._restarts = Restarts(policy)
        self._process: asyncio.subprocess.Process | None = None
        self._ready_since: float | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Begins to run the process."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path.write_bytes(b"")
        self._task = asyncio.create_task(self._run(), name=f"launched-{self.plan.name}")

    async def stop(self, grace_s: float) -> None:
        """Asks the process to end, kills it after `grace_s` seconds; idempotent.

        Cancel: the process is killed at once.
        """
        self._stopping.set()
        try:
            async with asyncio.timeout(grace_s):
                self._signal(signal.SIGTERM)
                if self._task is not None:
                    await asyncio.shield(self._task)
        except TimeoutError:
            pass
        finally:
            self._signal(signal.SIGKILL)
        if self._task is not None:
            await self._task

    def kill(self) -> None:
        """Kills the process at once; `stop` must still be awaited."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def log_tail(self) -> list[str]:
        """The last lines of the process's output."""
        try:
            with self.log_path.open(errors="replace") as lines:
                return [line.rstrip("\n") for line in deque(lines, _LOG_TAIL_LINES)]
        except OSError:
            return []

    def stats(self) -> dict[str, int]:
        """Deaths so far and whether the process runs."""
        return {"deaths": self._restarts.deaths, "running": int(self.pid is not None)}

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._enter(State.STARTING)
            code = await self._live_once()
            if self._stopping.is_set():
                break
            wait_s = self._next_wait_s(code)
            if wait_s is None:
                self._enter(State.GIVEN_UP, f"{_death(code)}, {self._restarts.deaths} deaths")
                return
            self._enter(State.WAITING, f"{_death(code)}, starts again in {wait_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
        self._enter(State.STOPPED)

    async def _live_once(self) -> int:
        """Starts the process, follows its health, and returns its exit code once it has ended."""
        self._ready_since = None
        self._process = await self._spawn()
        if self._stopping.is_set():  # stop came while it was being started
            self._signal(signal.SIGTERM)
        watcher = asyncio.create_task(self._follow_health(), name=f"health-{self.plan.name}")
        try:
            return await self._process.wait()
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Starts the process, tied to the life of this one, in a session of its own so that Ctrl-C reaches only us."""
        cores = ",".join(map(str, self.plan.cores))
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), cores, *self.plan.argv]
        with self.log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *leashed,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **self.plan.env},
                start_new_session=True,
            )

    async def _follow_health(self) -> None:
        async for is_serving in watch_health(self.plan.address):
            if is_serving:
                self._ready_since = self._ready_since or time.monotonic()
                self._enter(State.READY)
            elif self.state is State.READY and not self._stopping.is_set():
                self._enter(State.NOT_READY)

    def _next_wait_s(self, code: int) -> float | None:
        ready_s = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
        wait_s = self._restarts.next_wait_s(ready_s)
        return None if code == _USAGE_ERROR else wait_s

    def _enter(self, state: State, reason: str = "") -> None:
        self.state = state
        self._report(Change(self.plan.name, state, reason))

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
