"""The event loop's side of the prefill tier: admits prompts, waits for their first token, keeps their tickets.

A request's way: admitted (bounded) → submitted to the engine thread → its turn once a decode worker asks for it → its
chunks reported, each one offered to the ticket's reader at once → first tokens returned → blocks held by the ticket
until it is released or its lease ends.
Knows nothing of gRPC. Everything here runs on the event loop; `PrefillStepLoop` is the other side.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.common.block_journal import BlockJournal
from services.common.changes import Changes
from services.common.errors import BatonError, Cancelled, FieldViolation, InvalidRequest, PeerUnreachable
from services.common.lifecycle import Fatal
from services.common.queue_metrics import QueueMetrics
from services.common.types import Load, PrefillResult, WorkerInfo, WorkRequest
from services.engine.blocks import BlockPool
from services.prefill.admission import PrefillLimits, check_fit
from services.prefill.live import LivePrompt
from services.prefill.messages import Advanced, Await, Command, Failed, Finished, Release, Report, Stop, Submit
from services.prefill.step_loop import PrefillStepLoop
from services.prefill.turns import Turns
from services.worker.drain import Drain
from services.worker.engine_host import EngineHost

if TYPE_CHECKING:
    from services.engine.engine import Engine
    from services.kvtransfer.source import KvSource


class PrefillWorker:
    """Runs prompts on an engine and serves their KV through a `KvSource`.

    `open_source` is called once with the function that the source calls when a ticket's blocks are free. `fatal` ends
    the process when the engine thread dies, for its state cannot be trusted.
    """

    def __init__(
        self,
        engine: "Engine",
        info: WorkerInfo,
        limits: PrefillLimits,
        fatal: Fatal,
        open_source: Callable[[Callable[[str], None]], "KvSource"],
        queue: QueueMetrics,
    ) -> None:
        self._engine = engine
        self._info = info
        self.source = open_source(self._on_released)
        self.source.arrivals.on_awaited = self._on_awaited
        self._turns = Turns(limits, queue)
        self._fatal = fatal
        self.changes = Changes()
        self.blocks = BlockJournal()
        self._keys = itertools.count(1)
        self._live: dict[int, LivePrompt] = {}
        self._tickets: dict[str, int] = {}
        self._drain = Drain(info.worker_id)
        self._prefilled_tokens = 0
        pool = BlockPool(engine.limits.num_blocks, engine.layout.block_size, prefix_caching=limits.prefix_caching)
        scheduler = limits.scheduler(pool, engine)
        self._report = Report((), scheduler.stats(), pool.stats())
        self._engine_host: EngineHost[Command, Report] = EngineHost(
            "prefill-engine",
            lambda report: PrefillStepLoop(engine, pool, scheduler, limits.priority_aging_s, report),
            # Four for every live request, and Release of every ticket: each holds a block.
            max_commands=4 * limits.max_live + engine.limits.num_blocks,
            on_report=self._apply,
            on_failure=self._die,
        )

    async def start(self) -> None:
        """Starts the engine thread and the source."""
        await self.source.start()
        self._engine_host.start()

    async def prefill(self, request: WorkRequest) -> PrefillResult:
        """Runs a prompt to its first token.

        Raises:
            BatonError: typed by cause; nothing of the request is left behind.
        Cancel: stops the prompt within one chunk; its blocks are free once no send reads them.
        """
        try:
            key = self._admit(request)
        except BatonError as error:
            if request.ticket_id and self._key_of(request.ticket_id) is None:
                self.source.fail(request.ticket_id, error)  # whoever waits for the ticket need not wait
            raise
        live = self._live[key]
        try:
            finished = await live.finished(self._turns.wait(live))
        except BaseException as error:
            self._retire(key, error if isinstance(error, BatonError) else Cancelled("withdrawn during prefill"))
            raise
        self._retire(key)
        return live.result(finished, self._info.worker_id)

    def info(self) -> WorkerInfo:
        """What the worker is."""
        return self._info

    def load(self) -> Load:
        """How busy it is, as of the last step."""
        prompts, blocks = self._report.prompts, self._report.blocks
        return Load(
            waiting_requests=max(prompts.waiting, len(self._live) - prompts.running),
            outstanding_tokens=prompts.outstanding_tokens,
            running_requests=prompts.running,
            free_blocks=blocks.free + blocks.cached,
            total_blocks=blocks.total,
            handoffs=len(self._tickets),
            channels=self.source.stats().get("channels", 0),
            draining=self._drain.is_closed,
            counters=self.stats(),
        )

    def stats(self) -> dict[str, int]:
        """Every count of the worker, its engine, thread and source."""
        blocks = self._report.blocks
        return {
            "live_requests": len(self._live),
            "tickets": len(self._tickets),
            "held_prompts": self._report.prompts.held,
            "prompts_ahead": self._report.prompts.ahead,
            "blocks_held": blocks.held,
            "prefix_cache_queries": blocks.cache_queries,
            "prefix_cache_hits": blocks.cache_hits,
            "prefilled_tokens": self._prefilled_tokens,
            "moved_requests": self._drain.moved,
            **{f"engine_{name}": value for name, value in self._engine.stats().items()},
            **self._engine_host.stats(),
            **{f"source_{name}": value for name, value in self.source.stats().items()},
        }

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Takes no new requests and waits until nothing is left or the deadline (monotonic); returns what is left.

        After `move_after_s`, prompts that still run and tickets that nobody has fetched fail with `Draining`.
        """
        self._drain.close()
        self.changes.notify()
        await self._drain.run(deadline, move_after_s, self._move)
        return len(self._live) + len(self._tickets)

    async def close(self) -> None:
        """Ends everything; callers that still wait get `Draining`."""
        self._drain.close()
        self.changes.close()
        self._move(self._drain.error())
        await self.source.close()
        await self._engine_host.close()

    def _move(self, error: BatonError) -> int:
        for live in self._live.values():
            live.fail(error)
        tickets = [ticket_id for ticket_id, key in self._tickets.items() if key not in self._live]
        for ticket_id in tickets:
            self.source.fail(ticket_id, error)  # whoever fetches it runs the prompt elsewhere
        return len(self._live) + len(tickets)

    def _admit(self, request: WorkRequest) -> int:
        check_fit(request, self._engine)
        if request.ticket_id and self._key_of(request.ticket_id) is not None:
            raise InvalidRequest(FieldViolation("ticket_id", "is in use; make a new one for each try"))
        self._drain.check()
        key, live = next(self._keys), LivePrompt(request)
        is_awaited = not request.ticket_id or self.source.arrivals.is_awaited(request.ticket_id)
        with self._turns.entering(live):
            self._engine_host.post(Submit(key, request, is_awaited))
        self._live[key] = live
        self._update_drain()
        return key

    def _key_of(self, ticket_id: str) -> int | None:
        waiting = (key for key, live in self._live.items() if live.request.ticket_id == ticket_id)
        return self._tickets.get(ticket_id, next(waiting, None))

    def _on_awaited(self, ticket_id: str, is_awaited: bool) -> None:
        """A decode worker asks for a prompt's KV, or does no longer."""
        key = self._key_of(ticket_id)
        if key is not None:
            self._engine_host.tell(Await(key, is_awaited))

    def _retire(self, key: int, error: BatonError | None = None) -> None:
        """The caller has its answer or its error; without a ticket the blocks go back at once."""
        live = self._live.pop(key)
        self._turns.ended(live)
        if error is not None:
            self._engine_host.tell(Stop(key))
        if error is not None and live.request.ticket_id:
            self.source.fail(live.request.ticket_id, error)
        if not live.has_ticket:
            self._engine_host.tell(Release(key))
        self._update_drain()

    def _on_released(self, ticket_id: str) -> None:
        """The source says that nobody reads the ticket's blocks any more; its prompt may still run, for nobody."""
        key = self._tickets.pop(ticket_id)
        self._engine_host.tell(Stop(key))
        self._engine_host.tell(Release(key))
        if key in self._live:
            self._live[key].fail(Cancelled("the ticket was given back before its prompt was done"))
        self._update_drain()

    def _update_drain(self) -> None:
        self._drain.occupied(len(self._live) + len(self._tickets))
        self.changes.notify()

    def _apply(self, report: Report) -> None:
        self._report = report
        self.blocks.apply(report.known)
        for event in report.events:
            live = self._live.get(event.key)
            if live is not None:
                self._apply_event(live, event)
        self.changes.notify()

    def _apply_event(self, live: LivePrompt, event: Advanced | Finished | Failed) -> None:
        match event:
            case Advanced():
                self._offer(live, event, event.computed)
            case Finished():
                self._prefilled_tokens += live.computed_tokens(event.cached_tokens)
                self._offer(live, event, len(live.request.token_ids))
                if live.has_ticket:
                    ticket_id = live.request.ticket_id
                    self.source.finish(ticket_id, event.first_tokens, event.stages, event.cached_tokens)
                live.finish(event)
            case Failed():
                live.fail(event.error)

    def _offer(self, live: LivePrompt, event: Advanced | Finished, computed: int) -> None:
        """Lets the ticket's reader have what is computed; opens the ticket when the prompt is admitted."""
        request = live.request
        live.turn.set()
        if not request.ticket_id:
            return
        if not live.has_ticket:
            live.has_ticket = True
            self._tickets[request.ticket_id] = event.key
            self.source.open(request.ticket_id, request.request_id, event.block_ids, len(request.token_ids))
        self.source.advance(request.ticket_id, computed)

    def _die(self, error: BaseException) -> None:
        self._drain.close()
        self._move(PeerUnreachable("the worker's engine failed and the process ends; use another worker"))
        self._fatal.fail(error)
