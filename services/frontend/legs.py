"""The two legs of one request, run side by side and made one stream of tokens.

Each leg is a task that puts what it gets into one bounded buffer (`arrivals.py`); the pipeline takes out all that is
there. Knows nothing of text.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from services.common.errors import BatonError, Cancelled, Internal, PeerUnreachable, SlowReader
from services.common.timeline import Mark
from services.common.types import ChoiceTokens, DecodeEvent, DecodeSummary, Handoff, PrefillResult, WorkRequest
from services.frontend.arrivals import Arrivals
from services.frontend.fallback import Fallback
from services.frontend.member import Member
from services.frontend.merge import TokenMerge
from services.frontend.outcomes import Outcomes, named
from services.frontend.releases import TicketReleases
from services.frontend.routing.shortcut import Shortcut
from services.frontend.rules import Rules
from services.frontend.stage_record import StageRecord

# Both legs report right after their last token; a worker that does not is not worth more waiting.
_REPORT_GRACE_S = 1.0
# How long after the loss of a prefill worker its KV may still turn out to have arrived.
_LOST_PREFILL_GRACE_S = 2.0
_UNFINISHED = "the worker ended the request before all its choices had ended; this is a bug"


class Legs:
    """One request on its way through its workers.

    `members` are the prefill and the decode worker of the route, `cached` what each is thought to have in its prefix
    cache; `merge` knows the tokens of all the request's routes.

    opened ──next_tokens…──▶ all choices ended ──finish──▶ reports known ──stop──▶ nothing left

    `stop` must be called, whatever happened; it ends both legs and gives the ticket back unless decode has taken the KV
    and lives: one that died may not have said so to the source.
    """

    def __init__(
        self,
        work: WorkRequest,
        members: tuple[Member | None, Member | None],
        merge: TokenMerge,
        record: StageRecord,
        rules: Rules,
        cached: Mapping[str, int],
    ) -> None:
        self._work = work
        self._cached = cached
        self._prefill, self._decode = prefill, decode = members
        self._record = record
        self._merge = merge
        self._arrivals = Arrivals(merge, rules)
        self._is_stopped = False
        self._decode_spoke = asyncio.Event()
        self._has_decoded = False
        self._has_decode_failed = False
        self._prefill_result: PrefillResult | None = None
        self._decode_summary: DecodeSummary | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._outcomes = Outcomes(prefill, decode)
        self.fallback, self.shortcut = Fallback.NONE, Shortcut.NONE
        if prefill is not None:
            self._start(prefill, self._run_prefill)
        if decode is not None:
            self._start(decode, self._run_decode)

    async def begin(self, timeout_s: float | None = None) -> bool | None:
        """Waits for the first sign of a leg; True where it is tokens, False a failure, None where time ran out."""
        return await self._arrivals.begin(timeout_s)

    async def next_tokens(self) -> list[ChoiceTokens]:
        """Waits until a leg has delivered something and returns all that is new; may be empty after duplicates.

        Raises:
            BatonError: a leg failed, the legs do not fit together, or the stream stalls.
        """
        try:
            return await self._arrivals.next_tokens()
        except TimeoutError as error:
            stalled = PeerUnreachable("the decode worker is stuck: it brought no token for the stall timeout")
            worker = self._decode or self._prefill
            if worker is not None:
                stalled.details["peer"] = worker.calls.peer
                self._outcomes.failed(worker, stalled)
                named(stalled, worker.worker)
            raise stalled from error

    async def finish(self) -> None:
        """Waits a moment for the reports of the legs, where they ended by themselves."""
        if self._merge.is_finished and (self._decode_spoke.is_set() or len(self._tasks) == 1):
            await asyncio.wait(self._tasks, timeout=_REPORT_GRACE_S)

    def stop(self, releases: TicketReleases) -> None:
        """Ends both legs, on the workers too; what they bring from now on is lost. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._decode is not None and self._has_taken_over:
            self._outcomes.succeeded(self._decode)
        if self._prefill is not None and self._work.ticket_id and not self._has_taken_over:
            releases.release(self._prefill, self._work.ticket_id)

    async def stopped(self) -> None:
        """Waits until nothing of the legs is left; `stop` comes first."""
        await asyncio.wait(self._tasks)

    @property
    def _has_taken_over(self) -> bool:
        return self._decode_spoke.is_set() and not self._has_decode_failed

    @property
    def worker_ids(self) -> frozenset[str]:
        """The workers of the route."""
        return frozenset(member.worker.worker_id for member in (self._prefill, self._decode) if member is not None)

    @property
    def prefill_worker_id(self) -> str:
        """The worker that ran the prompt."""
        runner = self._prefill or self._decode
        return runner.worker.worker_id if runner is not None else ""

    @property
    def decode_worker_id(self) -> str:
        """The worker that ran the decode steps; empty where none was needed."""
        is_needed = self._prefill is None or self._has_decoded
        return self._decode.worker.worker_id if self._decode is not None and is_needed else ""

    @property
    def is_colocated(self) -> bool:
        """True where one worker runs both legs."""
        return self._prefill is None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came out of a prefix cache, as far as the workers have said."""
        report = self._prefill_result if self._prefill is not None else self._decode_summary
        return report.usage.cached_tokens if report is not None else 0

    def _start(self, member: Member, run: Callable[[Member], Awaitable[None]]) -> None:
        tokens = len(self._work.token_ids)
        is_handed_over = member is self._decode and self._prefill is not None
        sent = tokens, tokens if is_handed_over else self._cached.get(member.worker.worker_id, 0)
        member.begin(*sent)
        task = asyncio.create_task(self._guard(member, run), name=f"leg-{self._work.request_id}")
        task.add_done_callback(lambda _: member.end(*sent))
        self._tasks.append(task)

    async def _guard(self, member: Member, run: Callable[[Member], Awaitable[None]]) -> None:
        """Runs one leg; its failure becomes the last thing that it puts into the buffer.

        The leg that must bring the last token fails at its end, too; nobody sees that where all choices have ended.
        """
        try:
            await run(member)
        except SlowReader as error:
            await self._arrivals.put(error)  # it is the client who does not read: no worker can help
        except Cancelled as error:
            # Nobody here withdrew the request (that would be CancelledError), so the worker dropped it.
            lost = PeerUnreachable(f"{member.worker.worker_id} dropped the request: {error.message}")
            await self._arrivals.put(named(lost, member.worker))
        except BatonError as error:
            await self._arrivals.put(named(error, member.worker))
        except Exception as error:  # noqa: BLE001 - raised again by next_tokens, in the request's own task
            await self._arrivals.put(error)

    async def _run_prefill(self, member: Member) -> None:
        try:
            async with member.lifeline.held():
                result = await member.calls.prefill.prefill(self._work)
        except BatonError as error:
            self._outcomes.failed(member, error)
            if not await self._can_do_without_prefill(error):
                raise
            return
        self._outcomes.succeeded(member)
        self._record.mark(Mark.FIRST_TOKEN)
        self._record.report(result.stages)
        self._prefill_result = result
        await self._arrivals.put(result.first_tokens)
        if self._decode is None:
            raise Internal(_UNFINISHED)

    async def _run_decode(self, member: Member) -> None:
        try:
            # Until decode has the KV it needs the prefill worker, too.
            source = (self._prefill or member).lifeline.held(until=self._decode_spoke.is_set)
            calling = contextlib.aclosing(member.calls.decode.decode(self._decode_work()))
            async with member.lifeline.held(), source, calling as events:
                async for event in events:
                    self._note(event)
                    if event.choices:
                        await self._arrivals.put(event.choices)
        except BatonError as error:
            self._has_decode_failed = True
            self._outcomes.failed(member, error)
            raise
        if self._decode_summary is None:
            raise PeerUnreachable("the decode worker ended its stream without saying how the request went")
        raise Internal(_UNFINISHED)

    async def _can_do_without_prefill(self, error: BatonError) -> bool:
        """True where decode has the KV already; then it delivers every token, the first one too.

        A prefill worker that died may have handed the KV over before; decode will say in a moment whether it did.
        """
        if isinstance(error, PeerUnreachable) and self._decode is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOST_PREFILL_GRACE_S):
                    await self._decode_spoke.wait()
        return self._decode_spoke.is_set()

    def _decode_work(self) -> WorkRequest:
        """The request as decode takes it: with a handoff, where there is a prefill leg."""
        if self._prefill is None:
            return self._work
        source = self._prefill.worker
        handoff = Handoff(
            ticket_id=self._work.ticket_id,
            worker_id=source.worker_id,
            incarnation=source.incarnation,
            address=source.address,
        )
        return dataclasses.replace(self._work, ticket_id="", handoff=handoff)

    def _note(self, event: DecodeEvent) -> None:
        """Marks the moments that an event shows and keeps its summary."""
        self._decode_spoke.set()
        self._record.mark(Mark.FIRST_TOKEN)
        if self._prefill is not None:
            self._record.mark(Mark.KV_READY)
        if any(part.tokens and part.tokens[-1].index > 0 for part in event.choices):
            self._has_decoded = True
            self._record.mark(Mark.FIRST_STEP)
            self._record.mark(Mark.LAST_TOKEN)
        if event.summary is not None:
            self._decode_summary = event.summary
            self._record.report(event.summary.stages)
