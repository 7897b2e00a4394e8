"""Where the KV of one fetch lands: the reserved blocks, and the fence that keeps late bytes out of them.

The channel's thread receives into staging, which belongs to the channel, and only then writes into the blocks. Between
the two it asks the landing, under a lock, whether the fetch still stands. Once `fence` has returned nothing is ever
written into the blocks again, whatever the thread is doing: stuck in a receive, about to verify, or already ended. So a
cancelled fetch need not wait for the network, and need not break a channel that others use.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from services.common.errors import BatonError, KvCorrupt
from services.common.types import KvLayout
from services.kvtransfer.checksum import checksum_of
from services.kvtransfer.events import ChunkHeader, FetchEnd
from services.kvtransfer.kv_blocks import KvBlocks
from services.kvtransfer.staging import as_kv, token_bytes


class Lands(Protocol):
    """What takes the messages of one fetch from a channel: a `Landing`, or a probe's."""

    fetch_id: str
    next_token: int
    on_progress: Callable[[], None] | None

    def land(self, header: ChunkHeader, data: Tensor, layout: KvLayout) -> BatonError | None:
        """Takes one message, on the channel's thread; says what is wrong with it."""
        ...

    def complete(self, end: FetchEnd) -> None:
        """The source is done."""
        ...

    def fail(self, error: BatonError) -> None:
        """Nothing more will come."""
        ...


class Landing:
    """Takes the chunks of one fetch, in order, without gaps.

    Loop: `arrived`, `fail`, `complete`, `fence`, and `on_progress`, which the channel calls after each message that
    landed. Channel's thread: `land`. `next_token` is the first position that is not verified and written yet.
    """

    def __init__(
        self,
        fetch_id: str,
        kv: KvBlocks,
        block_ids: Sequence[int],
        start_token: int,
        num_tokens: int,
        *,
        checksum: bool,
    ) -> None:
        self.fetch_id = fetch_id
        self.on_progress: Callable[[], None] | None = None
        self.next_token = start_token
        self.received_bytes = 0
        self.arrived: asyncio.Future[FetchEnd] = asyncio.get_running_loop().create_future()
        self._kv = kv
        self._block_ids = tuple(block_ids)
        self._num_tokens = num_tokens
        self._must_verify = checksum
        self._lock = threading.Lock()
        self._is_fenced = False
        self._is_writing = False
        self._idle = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def land(self, header: ChunkHeader, data: Tensor, layout: KvLayout) -> BatonError | None:
        """Verifies a chunk and writes it into the blocks unless the fetch is fenced.

        Args:
            header: What the source announced.
            data: uint8, the bytes that came.
            layout: The source's layout, which the bytes are in.

        Returns:
            What is wrong with the chunk; nothing was written then.
        """
        error = self._find_fault(header, data, layout)
        if error is not None:
            return error
        with self._lock:
            if self._is_fenced:
                return None
            self._is_writing = True
        try:
            self._kv.write(self._block_ids, header.start_token, header.end_token, as_kv(data, layout))
            self.next_token = header.end_token
            self.received_bytes += data.numel()
        finally:
            with self._lock:
                self._is_writing = False
                must_tell = self._is_fenced
        if must_tell:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._idle.set)
        return None

    def complete(self, end: FetchEnd) -> None:
        """The source is done and every chunk before this was landed."""
        if self.next_token != self._num_tokens:
            message = f"the source ended the fetch at token {self.next_token} of {self._num_tokens}; fetch again"
            self.fail(KvCorrupt(message))
        elif not self.arrived.done():
            self.arrived.set_result(end)

    def fail(self, error: BatonError) -> None:
        """The fetch is over without its KV."""
        if not self.arrived.done():
            self.arrived.set_exception(error)
            self.arrived.exception()  # marks it as seen: the fetch may have been cancelled

    async def fence(self) -> None:
        """Keeps the channel's thread out of the blocks for good; waits for a write that is in progress.

        That write is one memory copy, so the wait is short and not cancellable: it must be over before the blocks are
        given to somebody else. A cancellation that comes meanwhile is raised afterwards.
        """
        with self._lock:
            self._is_fenced = True
            if not self._is_writing:
                return
        waiting = asyncio.ensure_future(self._idle.wait())
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _find_fault(self, header: ChunkHeader, data: Tensor, layout: KvLayout) -> BatonError | None:
        where = f"tokens [{header.start_token}, {header.end_token}) of fetch {self.fetch_id}"
        if header.start_token != self.next_token or not header.start_token < header.end_token <= self._num_tokens:
            return KvCorrupt(f"{where} came where {self.next_token} of {self._num_tokens} was expected; fetch again")
        if header.num_bytes != (header.end_token - header.start_token) * token_bytes(layout):
            return KvCorrupt(f"{where} came as {header.num_bytes} bytes, which is another shape; fetch again")
        if not self._must_verify:
            return None
        if header.checksum is None:
            return KvCorrupt(f"{where} came without a checksum; turn checksums on at the source or off here")
        if checksum_of(data) != header.checksum:
            return KvCorrupt(f"the checksum of {where} does not match; the bytes were dropped, fetch again")
        return None
