"""One answer that outlives its client's connection: what was produced, and who reads it.

Every message is kept until the reader is `limit` tokens past it, for nobody can know which of the messages that were
sent have arrived. What the reader lacks is bounded by the same number: beyond it `put` waits, and the workers are held
back as by any slow client. Knows nothing of gRPC.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator

from services.common.changes import Changes
from services.common.errors import BatonError, Cancelled, NotFound
from services.frontend.request import Output

Send = Callable[[Output], Awaitable[None]]


class KeptAnswer:
    """One request's answer.

    running ──task done──▶ ended;   read by one reader at a time: the latest; the one before is sent away

    Thread: the event loop's only.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[int, Output] = {}
        self._first = 0  # number of the oldest message that is kept
        self._next = 0  # number of the message that the reader gets next
        self._end = 0  # number of the message that is produced next
        self._ahead = self._behind = 0  # tokens kept after and before `_next`
        self._reader: object | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._changes = Changes()
        self.expiry: asyncio.TimerHandle | None = None

    def start(self, run: Callable[[Send], Awaitable[None]], name: str) -> asyncio.Task[None]:
        """Begins to produce; the task ends by itself, or soon after `stop`."""
        self._task = asyncio.create_task(self._run(run), name=name)
        return self._task

    @property
    def is_running(self) -> bool:
        """True while the request is in work."""
        return self._task is not None and not self._task.done()

    @property
    def is_read(self) -> bool:
        """True while somebody reads."""
        return self._reader is not None

    def stop(self) -> None:
        """Withdraws the request where it still runs; who reads is told."""
        if self._task is not None:
            self._task.cancel()

    async def forward(self, received: int, send: Send) -> None:
        """Sends every message after the first `received` ones, to the end; takes over from whoever did so before.

        Raises:
            NotFound: the client asks for messages that are no longer kept, or for some that never were.
            Cancelled: another reader took over, or the request was withdrawn.
            BatonError: what the request failed with.
        Cancel: the answer goes on without a reader.
        """
        with self._reading(received) as reader:
            while True:
                seen = self._changes.count
                if self._reader is not reader:
                    raise Cancelled("another call goes on with this answer")
                if self._next < self._end:
                    await send(self._take())
                elif self.is_running:
                    await self._changes.wait(seen)
                else:
                    break
        if self._failure is not None:
            raise self._failure

    async def _run(self, run: Callable[[Send], Awaitable[None]]) -> None:
        try:
            await run(self._put)
        except asyncio.CancelledError:
            self._failure = Cancelled("the request was withdrawn, or nobody came back for it in time")
            raise
        except BatonError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - raised again by forward, in the reader's own task
            self._failure = error
        finally:
            asyncio.get_running_loop().call_soon(self._changes.notify)  # the task is done by then

    async def _put(self, output: Output) -> None:
        """Keeps a message; waits while the reader is too far behind."""
        while self._ahead >= self._limit:
            await self._changes.wait(self._changes.count)
        self._kept[self._end] = output
        self._end += 1
        self._ahead += _size(output)
        self._changes.notify()

    def _take(self) -> Output:
        """The next message for the reader; forgets what lies too far back."""
        output = self._kept[self._next]
        self._next += 1
        self._ahead -= _size(output)
        self._behind += _size(output)
        while self._behind > self._limit and self._first < self._next - 1:
            self._behind -= _size(self._kept.pop(self._first))
            self._first += 1
        self._changes.notify()
        return output

    @contextlib.contextmanager
    def _reading(self, received: int) -> Generator[object]:
        if not self._first <= received <= self._end:
            message = f"messages {self._first} to {self._end} of this answer are kept and {received} were received"
            raise NotFound(f"{message}; count over all calls and leave out the message with the token")
        reader = self._reader = object()
        self._next = received
        self._behind = sum(_size(self._kept[number]) for number in range(self._first, received))
        self._ahead = sum(_size(self._kept[number]) for number in range(received, self._end))
        self._changes.notify()
        try:
            yield reader
        finally:
            if self._reader is reader:
                self._reader = None


def _size(output: Output) -> int:
    """Tokens and alternatives in a message, at least 1."""
    tokens = (token for delta in output.deltas for token in delta.tokens)
    return max(1, sum(1 + len(token.top_logprobs) for token in tokens))
