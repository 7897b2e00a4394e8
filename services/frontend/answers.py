"""Runs requests for their clients; a resumable one goes on for a while without its client's connection.

A plain request ends with its call. A resumable one gets a token first; when its call ends early it runs on, and a call
with the token goes on with the answer where the client stopped. Without such a call for `window_s` seconds, or when it
is withdrawn, it stops on the workers, too, and all of it is freed. An ended answer is kept as long: its last messages
may have been lost. Tokens cannot be guessed, and this process alone knows them.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.common.errors import NotFound
from services.common.log import get_logger
from services.frontend.kept_answer import KeptAnswer, Send
from services.frontend.metrics import FrontendMetrics
from services.frontend.request import GenerationRequest, Output
from services.frontend.stage_record import StageRecord

Generate = Callable[[GenerationRequest, Send, StageRecord], Awaitable[None]]

_TOKEN_BYTES = 24

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How much is kept for clients that may come back; `window_s` 0 keeps nothing. `tokens` is per answer."""

    window_s: float
    max_answers: int
    tokens: int


class Answers:
    """Owns the answers that are kept, and their tasks.

    read ◀──forward── unread ──window over, withdrawn or draining──▶ dropped
    """

    def __init__(self, generate: Generate, keeping: Keeping, metrics: FrontendMetrics) -> None:
        self._generate = generate
        self._keeping = keeping
        self._metrics = metrics
        self._window_s = keeping.window_s
        self._kept: dict[str, KeptAnswer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def generate(self, request: GenerationRequest, send: Send, record: StageRecord) -> None:
        """Runs one request and sends its answer.

        Raises:
            BatonError: typed by cause.
        Cancel: stops the request on the workers, unless it is resumable.
        """
        if not request.resumable or not self._has_room():
            await self._generate(request, send, record)
            return
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        answer = self._kept[token] = KeptAnswer(self._keeping.tokens)
        task = answer.start(lambda put: self._generate(request, put, record), f"answer-{request.request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await send(Output(request_id=request.request_id, resume_token=token))
        except BaseException:
            self._drop(token, "withdrawn")  # nobody knows the token
            raise
        await self._forward(token, answer, 0, send)

    async def resume(self, token: str, received: int, send: Send) -> None:
        """Goes on with an answer of which the client has `received` messages, that with the token left out.

        Raises:
            NotFound: no such answer is kept here; the request has to be sent again.
            BatonError: what the request failed with, or Cancelled where another call took over.
        Cancel: the answer is kept for the window once more.
        """
        answer = self._kept.get(token)
        self._metrics.resumed("ok" if answer is not None else "unknown")
        if answer is None:
            message = (
                "no answer with this token is kept here: its window is over, it was cancelled, or another frontend"
            )
            raise NotFound(f"{message} has it; send the request again")
        await self._forward(token, answer, received, send)

    def cancel(self, token: str) -> bool:
        """Stops a resumable request and forgets its answer; False where there is none, or it had ended."""
        answer = self._kept.get(token)
        was_running = answer is not None and answer.is_running
        if answer is not None:
            self._drop(token, "withdrawn")
        return was_running

    def drain(self) -> None:
        """Keeps nothing for clients that are not there: they could not come back to this process."""
        self._window_s = 0.0
        for token in [token for token, answer in self._kept.items() if not answer.is_read]:
            self._drop(token, "draining")

    async def close(self) -> None:
        """Stops every resumable request and frees all answers."""
        self._window_s = 0.0
        for token in list(self._kept):
            self._drop(token, "draining")
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stats(self) -> dict[str, int]:
        """Answers that are kept, those that nobody reads, and resumable requests in work. Any thread."""
        return {
            "kept_answers": len(self._kept),
            "unread_answers": sum(not answer.is_read for answer in list(self._kept.values())),
            "resumable_requests": len(self._tasks),
        }

    async def _forward(self, token: str, answer: KeptAnswer, received: int, send: Send) -> None:
        if answer.expiry is not None:
            answer.expiry.cancel()
        try:
            await answer.forward(received, send)
        finally:
            if not answer.is_read and self._kept.get(token) is answer:
                self._leave(token, answer)

    def _leave(self, token: str, answer: KeptAnswer) -> None:
        """Starts the window of an answer that nobody reads any more."""
        if self._window_s:
            answer.expiry = asyncio.get_running_loop().call_later(self._window_s, self._drop, token, "window")
        else:
            self._drop(token, "draining")

    def _drop(self, token: str, reason: str) -> None:
        answer = self._kept.pop(token)
        if answer.expiry is not None:
            answer.expiry.cancel()
        if answer.is_running:
            self._metrics.dropped(reason)
            _log.info("resumable_request_dropped", reason=reason)
        answer.stop()

    def _has_room(self) -> bool:
        """Makes room by forgetting the oldest ended answer; False where all are still wanted, or none may be kept."""
        if not self._window_s:
            return False
        if len(self._kept) < self._keeping.max_answers:
            return True
        ended = (token for token, answer in self._kept.items() if not answer.is_running and not answer.is_read)
        oldest = next(ended, None)
        if oldest is not None:
            self._drop(oldest, "window")
        return oldest is not None
