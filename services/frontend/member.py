"""One incarnation of one worker, as this frontend knows it: its clients, its load, what was sent to it.

The load is watched over a stream; when that breaks, watching starts again after a pause that grows. Breaks and missed
heartbeats decide whether the worker counts as reachable (`reachability.py`).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator

from services.common.errors import BatonError
from services.common.log import get_logger
from services.common.types import Load, WorkerInfo
from services.frontend.block_watch import BlockWatch
from services.frontend.connection import Connection
from services.frontend.in_flight import InFlight
from services.frontend.lifeline import Lifeline
from services.frontend.member_rules import MemberRules
from services.frontend.reachability import Reachability, State
from services.frontend.routing.candidate import Candidate
from services.frontend.routing.ejection import Ejections

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0

_log = get_logger(__name__)


class Member:
    """Watches one worker until it is closed.

    watched ──retire──▶ not routed to ──close──▶ gone

    What was sent to it holds on to `lifeline`, which is cut when the worker becomes unreachable.
    `on_change` is called when the worker can be reached, cannot any more, begins to drain, proves or loses a channel,
    or is retired and idle.
    """

    def __init__(
        self,
        worker: WorkerInfo,
        connection: Connection,
        on_change: Callable[[], None],
        ejections: Ejections,
        rules: MemberRules,
    ) -> None:
        self.worker = worker
        self.calls = connection
        self.lifeline = Lifeline(connection.peer)
        self.ejections = ejections
        self._slow_start = rules.slow_start
        self._reachable_since = 0.0
        self._blocks = BlockWatch(worker, connection.worker) if worker.tier in rules.watched_tiers else None
        self._heartbeat_s = rules.thresholds.heartbeat_s
        self._reachability = Reachability(rules.thresholds)
        self._on_change = on_change
        self._in_flight = InFlight()
        self._load: Load | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_retired = False

    def start(self) -> None:
        """Begins to watch."""
        if self._blocks is not None:
            self._blocks.start()
        self._watch = asyncio.create_task(self._keep_watching(), name=f"watch-{self.worker.worker_id}")

    def candidate(self) -> Candidate | None:
        """The worker as the router sees it; None while it cannot be reached, or once it is retired."""
        if self._load is None or self._is_retired or not self._reachability.is_routable:
            return None
        return Candidate(
            worker=self.worker,
            load=self._load,
            unfinished=self._in_flight.unfinished,
            unreported=self._in_flight.unreported,
            known_blocks=self._blocks.known if self._blocks is not None else frozenset(),
            ramp=self._slow_start.ramp(time.monotonic() - self._warm_since),
        )

    @property
    def _warm_since(self) -> float:
        return max(self._reachable_since, self.ejections.readmitted_at(self.worker.worker_id))

    @property
    def is_reachable(self) -> bool:
        """True while load reports come."""
        return self._reachability.is_routable

    @property
    def is_suspect(self) -> bool:
        """True where something failed lately: to be used only where no other can serve."""
        return self._reachability.state is State.SUSPECT

    @property
    def is_retired(self) -> bool:
        """True once it is out of routing for good."""
        return self._is_retired

    @property
    def is_idle(self) -> bool:
        """True while this frontend has nothing there."""
        return self._in_flight.unfinished.requests == 0

    def begin(self, tokens: int, cached: int = 0) -> None:
        """Counts a request with so many prompt tokens, some thought to be cached, once it is decided; `end` follows."""
        self._in_flight.begin(tokens, cached)

    def end(self, tokens: int, cached: int = 0) -> None:
        """The request is no longer there, whichever way it ended."""
        self._in_flight.end(tokens, cached)
        if self._is_retired:
            self._on_change()

    def retire(self) -> None:
        """Takes the worker out of routing; what runs there goes on."""
        self._is_retired = True

    async def close(self) -> None:
        """Ends the watch and every call to the worker.

        Cancel: safe; call again to finish.
        """
        self._is_retired = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._blocks is not None:
            await self._blocks.close()
        await self.calls.close()

    async def _keep_watching(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with contextlib.aclosing(self.calls.worker.watch_load(self._heartbeat_s)) as reports:
                    async for report in reports:
                        if report is None:
                            self._failed("missed a heartbeat")
                        elif report.incarnation != self.worker.incarnation:
                            self._failed("restarted", is_gone=True)
                            break
                        else:
                            pause_s = _FIRST_PAUSE_S
                            self._report(report.load)
            except BatonError as error:
                self._failed(type(error).__name__)
            except Exception as error:  # noqa: BLE001 - a watch that ended would leave a stale load for ever
                _log.error("worker_watch_failed", worker_id=self.worker.worker_id, exc_info=error)
                self._failed(type(error).__name__)
            else:
                self._failed("stream ended")
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _report(self, load: Load) -> None:
        before, self._load = self._load, load
        self._in_flight.reported()
        with self._told():
            self._reachability.report()
        if self._reachability.is_routable:
            self.lifeline.restore()
        if before is None or before.draining != load.draining or before.proven != load.proven:
            self._on_change()

    def _failed(self, reason: str, *, is_gone: bool = False) -> None:
        with self._told(reason):
            self._reachability.fail(is_gone=is_gone)

    @contextlib.contextmanager
    def _told(self, reason: str = "") -> Generator[None]:
        """Says so where the worker's state is another one afterwards."""
        before = self._reachability.state
        yield
        state = self._reachability.state
        if state is not before:
            log = _log.warning if state is State.UNREACHABLE else _log.info
            ids = {"worker_id": self.worker.worker_id, "incarnation": self.worker.incarnation}
            log(f"worker_{state.value}", **ids, reason=reason)
            if before in (State.CONNECTING, State.UNREACHABLE):
                self._reachable_since = time.monotonic()
            if state is State.UNREACHABLE:
                self.lifeline.cut()
            self._on_change()
