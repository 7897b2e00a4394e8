"""Starts the processes of ranks, notices when one ends, and ends them.

A thread of its own does that for as long as they live: the kernel ends them with the thread that started them, so that
nothing is left of a worker that is killed. Knows nothing of what the processes do.
"""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.engine.tensor_parallel.link import RankLost

WATCH_INTERVAL_S = 0.2
START_TIMEOUT_S = 30.0
STOP_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Start:
    """One process: its command line, its environment, and the descriptors that it inherits."""

    argv: Sequence[str]
    env: Mapping[str, str]
    descriptors: Sequence[int]


class RankKeeper:
    """Owns processes, by rank, from `start` to `stop`. Thread: any but its own."""

    def __init__(self, starts: Mapping[int, Start]) -> None:
        self._starts = starts
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._error: OSError | None = None
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._lost: RankLost | None = None
        self._report: Callable[[RankLost], None] | None = None
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)

    def start(self) -> None:
        """Starts the processes; returns once they run.

        Raises:
            OSError: one could not be started; none is left.
            TimeoutError: the machine did not start them in time.
        """
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S):
            raise TimeoutError(f"the rank processes did not start within {START_TIMEOUT_S:g} s")
        if self._error is not None:
            raise self._error

    def watch(self, report: Callable[[RankLost], None]) -> None:
        """Reports the first process that ends by itself, once, on the keeper's thread; at once where one has."""
        with self._lock:
            self._report, lost = report, self._lost
        if lost is not None:
            report(lost)

    def stop(self) -> None:
        """Gives the processes a moment to end, then kills them; returns when none is left. Idempotent."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(START_TIMEOUT_S + 2 * STOP_GRACE_S)

    def stats(self) -> dict[str, int]:
        """Processes that run."""
        return {"rank_processes": sum(process.poll() is None for process in self._processes.values())}

    def _run(self) -> None:
        try:
            for rank, start in self._starts.items():
                self._processes[rank] = _spawn(start)
        except OSError as error:
            self._error = error
            self._stopping.set()
        self._started.set()
        while not self._stopping.wait(WATCH_INTERVAL_S):
            self._look()
        for process in self._processes.values():
            _end(process)

    def _look(self) -> None:
        ended = {rank: code for rank, process in self._processes.items() if (code := process.poll()) is not None}
        if not ended or self._lost is not None:
            return
        rank, code = next(iter(ended.items()))
        lost = RankLost(f"the process of rank {rank} ended with code {code}; the worker must restart")
        with self._lock:
            self._lost, report = lost, self._report
        if report is not None:
            report(lost)


def _spawn(start: Start) -> "subprocess.Popen[bytes]":
    """In a session of its own: Ctrl-C is for the worker, which drains."""
    return subprocess.Popen(
        start.argv,
        env=dict(start.env),
        pass_fds=start.descriptors,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
