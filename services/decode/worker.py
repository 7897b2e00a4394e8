"""The event loop's side of the decode tier: admits requests, takes their KV over, streams their tokens.

A request's way with a handoff: seated (bounded, by priority; until its last token is made) → prompt admitted at the
source → blocks reserved by the engine thread → KV fetched into them and verified → joined to the running batch →
tokens. Without one the engine thread runs the prompt. Everything here is loop-owned; `DecodeStepLoop` is not.
"""

import itertools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from services.common.block_journal import BlockJournal
from services.common.changes import Changes
from services.common.errors import BatonError, PeerUnreachable
from services.common.lifecycle import Fatal
from services.common.places import Places
from services.common.queue_metrics import QueueMetrics
from services.common.times_by_size import TimesBySize
from services.common.types import DecodeEvent, Handoff, Load, Usage, WorkerInfo, WorkRequest
from services.decode.admission import DecodeLimits, check_fit
from services.decode.live import LiveRequest, goes_on, oldest_handoff_ms
from services.decode.messages import Command, Drop, Emitted, Event, Failed, Join, Progress, Report, Reserved, Submit
from services.decode.place import Place
from services.decode.scheduler import DecodeScheduler
from services.decode.step_loop import DecodeStepLoop
from services.decode.stream import TokenStream
from services.decode.summary import summarize
from services.decode.token_watch import TokenWatches
from services.engine.blocks import BlockPool
from services.worker.drain import Drain
from services.worker.engine_host import EngineHost

if TYPE_CHECKING:
    from services.engine.engine import Engine
    from services.kvtransfer.sink import Fetched, KvSink


class DecodeWorker:
    """Runs requests on an engine; takes the KV of handed-over prompts through a `KvSink`.

    `fatal` ends the process when the engine thread dies, for its state cannot be trusted.
    """

    def __init__(
        self,
        engine: "Engine",
        info: WorkerInfo,
        limits: DecodeLimits,
        fatal: Fatal,
        sink: "KvSink",
        queue: QueueMetrics,
    ) -> None:
        self._engine = engine
        self._info = info
        self._limits = limits
        self._sink = sink
        self._seats = Places(limits.seats, queue, f"worker {info.worker_id}")
        self._fatal = fatal
        self.changes = Changes()
        self.blocks = BlockJournal()
        self.handoff_times = TimesBySize(kept_s=60.0)  # else a slow time would keep requests from the handoff for ever
        self._keys = itertools.count(1)
        self._live: dict[int, LiveRequest] = {}
        self._drain = Drain(info.worker_id)
        self.watches = TokenWatches(limits.max_unread_tokens)
        pool = BlockPool(engine.limits.num_blocks, engine.layout.block_size, prefix_caching=limits.prefix_caching)
        scheduler = DecodeScheduler(
            pool, max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens
        )
        self._report = Report((), scheduler.stats(), pool.stats(), 0, 0)
        self._engine_host: EngineHost[Command, Report] = EngineHost(
            "decode-engine",
            lambda report: DecodeStepLoop(engine, pool, scheduler, limits.priority_aging_s, report),
            max_commands=8 * limits.max_live,  # Submit, Join and Drop of every live request, and of those just ended
            on_report=self._apply,
            on_failure=self._die,
        )

    async def start(self) -> None:
        """Starts the engine thread."""
        self._engine_host.start()

    async def decode(self, request: WorkRequest, place: Place | None = None) -> AsyncGenerator[DecodeEvent]:
        """Streams all tokens of a request, those excepted that go to its place; the last event has the summary.

        Raises:
            BatonError: typed by cause; nothing of the request is left behind.
        Cancel: close the iterator; the request stops within one step and its blocks are free again.
        """
        live = self._admit(request)
        try:
            with self.watches.joined(place, live.stream):
                live.seat = await live.in_time(self._seats.take(live.priority, live.num_choices))
                fetched = await live.in_time(self._begin(live))
                summary = None
                while summary is None:
                    choices = await live.in_time(live.stream.take())
                    if live.stream.progress is not None:
                        usage = Usage(len(request.token_ids), live.stream.num_tokens)
                        summary = summarize(usage, live.stream.progress, fetched, self._info.worker_id)
                    yield DecodeEvent(choices=choices, summary=summary, watched_tokens=live.stream.diverted_tokens)
        finally:
            self._retire(live)

    def info(self) -> WorkerInfo:
        """What the worker is."""
        return self._info

    def load(self) -> Load:
        """How busy it is, as of the last step."""
        runs, blocks = self._report.runs, self._report.blocks
        return Load(
            waiting_requests=runs.waiting + sum(not live.is_submitted for live in self._live.values()),
            outstanding_tokens=runs.outstanding_tokens,
            running_requests=runs.running,
            free_blocks=blocks.free + blocks.cached,
            total_blocks=blocks.total,
            handoffs=runs.loading,
            channels=self._sink.stats().get("channels", 0),
            draining=self._drain.is_closed,
            counters=self.stats(),
        )

    def stats(self) -> dict[str, int]:
        """Every count of the worker, its engine, thread and sink."""
        blocks = self._report.blocks
        return {
            "live_requests": len(self._live),
            "loading": self._report.runs.loading,
            "oldest_handoff_ms": oldest_handoff_ms(self._live.values()),
            "blocks_held": blocks.held,
            "prefix_cache_queries": blocks.cache_queries,
            "prefix_cache_hits": blocks.cache_hits,
            "prefilled_tokens": self._report.prefilled_tokens,
            "preemptions": self._report.preemptions,
            "seats_held": self._seats.num_held,
            "seats_awaited": self._seats.num_waiting,
            "moved_requests": self._drain.moved,
            **{f"engine_{name}": value for name, value in self._engine.stats().items()},
            **self._engine_host.stats(),
            **self.watches.stats(),
            **{f"sink_{name}": value for name, value in self._sink.stats().items()},
        }

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """Takes no new requests and waits until nothing is left or the deadline (monotonic); returns what is left.

        After `move_after_s`, requests that still run end with `Draining`: they go on elsewhere at their next token.
        """
        self._drain.close()
        self.changes.notify()
        await self._drain.run(deadline, move_after_s, self._fail_all)
        return len(self._live)

    async def close(self) -> None:
        """Ends everything; callers that still read get `Draining`."""
        self._drain.close()
        self.changes.close()
        self._fail_all(self._drain.error())
        self.watches.close_all(self._drain.error())
        await self._sink.close()
        await self._engine_host.close()

    def _admit(self, request: WorkRequest) -> LiveRequest:
        check_fit(request, self._limits, self._engine)
        self._drain.check()
        live = LiveRequest(next(self._keys), request, TokenStream(self._limits.max_unread_tokens))
        self._live[live.key] = live
        self._drain.occupied(len(self._live))
        return live

    def _submit(self, live: LiveRequest) -> None:
        self._engine_host.post(Submit(live.key, live.request))
        live.is_submitted = True

    async def _begin(self, live: LiveRequest) -> "Fetched | None":
        """Gets blocks for the request, and its KV where another worker runs the prompt."""
        if live.request.handoff is not None:
            return await self._take_over(live, live.request.handoff)
        self._submit(live)
        await self._seats.in_turn(live.priority, live.reserved)
        return None

    async def _take_over(self, live: LiveRequest, handoff: Handoff) -> "Fetched":
        """Waits for the prompt to be admitted, reserves blocks, fetches its KV into them, joins the running batch."""
        request = live.request
        try:
            lease_s = await self._sink.await_ticket(handoff, request.request_id, request.deadline)
            self._submit(live)
            blocks = self._sink.hold(handoff, lease_s, live.reserved, request.deadline)
            reserved = await self._seats.in_turn(live.priority, blocks)
        except BaseException:
            self._sink.give_back(handoff)
            raise
        where = (reserved.block_ids, reserved.start_token, len(request.token_ids))
        fetched = await self._sink.fetch(handoff, request.request_id, *where, request.deadline)
        self.handoff_times.add(max(1, len(request.token_ids) - reserved.start_token), fetched.handoff_ns)
        live.has_kv = True
        going_on = goes_on(fetched.first_tokens)
        live.stream.put(fetched.first_tokens, None if going_on else Progress())
        self._engine_host.tell(Join(live.key, going_on) if going_on else Drop(live.key))
        return fetched

    def _retire(self, live: LiveRequest) -> None:
        """The caller has gone or has everything; what the engine thread still knows of the request is dropped."""
        del self._live[live.key]
        self._seats.give_back(live.seat)
        live.reserved.cancel()
        if live.stream.progress is None:
            self._engine_host.tell(Drop(live.key))
        self._drain.occupied(len(self._live))
        self.changes.notify()

    def _apply(self, report: Report) -> None:
        self._report = report
        self.blocks.apply(report.known)
        for event in report.events:
            live = self._live.get(event.key)
            if live is not None:
                self._apply_event(live, event)
        self.changes.notify()

    def _apply_event(self, live: LiveRequest, event: Event) -> None:
        match event:
            case Reserved():
                if not live.reserved.done():
                    live.reserved.set_result(event)
            case Emitted():
                if not live.stream.put(event.choices, event.progress):
                    self._engine_host.tell(Drop(live.key))
                if live.stream.is_ended:
                    self._seats.give_back(live.seat)
            case Failed():
                live.stream.fail(event.error)

    def _fail_all(self, error: BatonError) -> int:
        """Ends what runs, in whatever phase; returns how many requests that were."""
        running = [live for live in self._live.values() if not live.stream.is_ended]
        for live in running:
            live.fail(error)
        return len(running)

    def _die(self, error: BaseException) -> None:
        self._drain.close()
        self._fail_all(PeerUnreachable("the worker's engine failed and the process ends; use another worker"))
        self._fatal.fail(error)
