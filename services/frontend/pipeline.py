"""What happens to a request, from the client's call to its last token. This is the file to read first.

    time ─▶
    received   validate · tokenize · admit · pick (decode worker, prefill worker)
                 │
    both legs    ├─ Prefill(ticket) ─ queue ─ chunk ─ chunk ─ first token ┐
    at once      └─ Decode(ticket) ── reserve ── fetch KV ── join ── step ─┤─ step ─ step ─ … ─ summary
                                                                          │
    client                                                  first token ◀─┴─ token ◀─ token ◀─ … ◀─ completion

The ticket ties the legs together; every token carries its index, so whichever leg is first with a token wins and the
other's copy is dropped (`legs.py`, `merge.py`). Tokens become text and are cut at stop strings (`output_text.py`).
However the legs end (done, stop string, cancelled by the client, out of time, a leg failed), both are stopped and the
ticket is given back (`launch.py`). Where workers failed, the request goes on with others (`recovery.py`): from the
start before its first token, else at its next one; the client sees one stream.

Knows nothing of gRPC: `send` hands a piece to the client and returns when there is room for the next one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from services.common.errors import BatonError
from services.common.log import get_logger
from services.common.timeline import Mark
from services.common.types import Usage, WorkRequest
from services.frontend.deadline import until
from services.frontend.launch import Launch
from services.frontend.legs import Legs
from services.frontend.merge import CONFLICT, TokenMerge
from services.frontend.output_text import OutputText
from services.frontend.parts import Parts
from services.frontend.race import Race
from services.frontend.recovery import MIGRATION, NOT_MOVED, REPLAY, Recovery
from services.frontend.request import Completion, GenerationRequest, Output, Prompt
from services.frontend.rules import Rules
from services.frontend.stage_record import StageRecord
from services.frontend.validate import PromptLimits, check_length, check_request

Send = Callable[[Output], Awaitable[None]]

_log = get_logger(__name__)


class Pipeline:
    """Runs requests; holds no state of its own between them."""

    def __init__(self, parts: Parts, limits: PromptLimits, rules: Rules) -> None:
        self._parts = parts
        self._limits = limits
        self._rules = rules
        self._launch = Launch(parts, rules)

    async def generate(self, request: GenerationRequest, send: Send, record: StageRecord) -> None:
        """Runs one request to its end.

        Raises:
            BatonError: typed by cause; nothing of the request is left on any worker.
        Cancel: stops the request on both workers.
        """
        self._parts.metrics.began()
        self._parts.budget.began()
        outcome = "ok"
        try:
            async with until(request.deadline):
                await self._run(request, send, record)
        except BaseException as error:
            outcome = "ClientCancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
            if isinstance(error, BatonError):
                self._count(error)
            raise
        finally:
            record.mark(Mark.FINISHED)
            self._parts.metrics.ended(outcome, record.stages())
            self._parts.budget.ended(time.monotonic())
            _log.info("request_ended", outcome=outcome, total_ms=record.stages().total_ns // 1_000_000)

    async def _run(self, request: GenerationRequest, send: Send, record: StageRecord) -> None:
        prompt = check_request(request, self._limits)
        token_ids = await self._parts.tokenizer.encode(prompt)
        async with self._parts.admission.hold(request.priority):
            race = self._enter(request, prompt, token_ids, record)
            while not race.text.is_finished:
                await self._run_legs(race, send)

    def _enter(
        self, request: GenerationRequest, prompt: Prompt, token_ids: tuple[int, ...], record: StageRecord
    ) -> Race:
        members = self._parts.members
        check_length(prompt, token_ids, members.max_model_len(members.snapshot()))
        work = WorkRequest(
            request_id=request.request_id,
            token_ids=token_ids,
            sampling=request.sampling,
            deadline=request.deadline,
            cache_salt=request.cache_salt,
            priority=request.priority,
        )
        text = OutputText(work.sampling, lambda: self._parts.tokenizer.new_detokenizer(token_ids))
        recovery = Recovery(self._rules.max_moves, self._parts.budget)
        return Race(work, record, text, TokenMerge(work.sampling.n), recovery, request.session_id)

    async def _run_legs(self, race: Race, send: Send) -> None:
        """Runs the request over one route, to its end or until its workers fail; then it may go on over another one.

        Raises:
            BatonError: it cannot go on.
        """
        route = await self._launch.next_route(race)
        race.settle(route)
        started = time.monotonic()
        async with self._launch.legs(race, route) as legs:
            try:
                await self._stream(race, legs, send, started)
                await legs.finish()
                await self._complete(race, legs, send)
            except BatonError as error:
                if race.text.is_finished:
                    raise  # all tokens are out and only the last message is not: nothing could go on
                race.recovery.move(error, legs.worker_ids, time.monotonic())
                if race.merge.has_begun:
                    race.keep_cached(legs.cached_tokens)
                self._parts.metrics.moved(MIGRATION if race.merge.has_begun else REPLAY)
                _log.warning("request_moved", moves=race.recovery.moves, cause=type(error).__name__, why=error.message)

    async def _stream(self, race: Race, legs: Legs, send: Send, started: float) -> None:
        """Sends every token as it comes until all choices have ended."""
        before = started
        while not race.text.is_finished:
            is_first = not race.merge.has_begun
            deltas = race.text.add(await legs.next_tokens())
            if not deltas:
                continue
            if is_first:
                self._parts.first_token_times.add(len(race.work.token_ids), time.monotonic() - before)
            race.record.mark(Mark.FIRST_SENT)
            await send(Output(request_id=race.work.request_id, deltas=deltas))
            now = time.monotonic()
            if not is_first:
                self._parts.metrics.token_gap((now - before) / max(1, *(len(delta.tokens) for delta in deltas)))
            before = now

    async def _complete(self, race: Race, legs: Legs, send: Send) -> None:
        """Sums the request up in the last message."""
        race.record.mark(Mark.FINISHED)
        completion = Completion(
            usage=Usage(len(race.work.token_ids), race.text.num_tokens, race.keep_cached(legs.cached_tokens)),
            stages=race.record.stages(),
            seed=race.work.sampling.seed or 0,
            prefill_worker_id=legs.prefill_worker_id,
            decode_worker_id=legs.decode_worker_id,
            colocated=legs.is_colocated,
            moves=race.recovery.moves,
            fallback=legs.fallback,
            shortcut=legs.shortcut,
            hedged=race.is_hedged,
        )
        self._parts.metrics.completed(completion.usage, completion.stages)
        self._parts.metrics.merged(race.merge.duplicates)
        await send(Output(request_id=race.work.request_id, completion=completion))

    def _count(self, error: BatonError) -> None:
        """Counts what an error says beyond its class."""
        if error.details.get("kind") == CONFLICT["kind"]:
            self._parts.metrics.conflicted()
        if NOT_MOVED in error.details:
            self._parts.metrics.not_moved(error.details[NOT_MOVED])
