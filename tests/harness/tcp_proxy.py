"""A TCP proxy that hurts a link on purpose: what bad networks do, between two real sockets.

    client ──up──▶ proxy ──up──▶ target
           ◀─down─       ◀─down─

`up` and `down` are hurt apart and at any time; what is done applies to connections that are open, too. Faults that
concern the whole link are methods.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

CHUNK_BYTES = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Lane:
    """One direction of a link.

    `delay_s` is added to every chunk. Every chunk is held up for `stall_s` with probability `stall_share`. Bytes go on
    at `bytes_per_s` at most; 0 is as fast as they come. After `cut_after` more bytes the connection is reset. While
    `is_open` is clear nothing goes on, and nobody is told.
    """

    delay_s: float = 0.0
    stall_share: float = 0.0
    stall_s: float = 0.0
    bytes_per_s: float = 0.0
    cut_after: int | None = None
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    passed_bytes: int = 0

    def heal(self) -> None:
        """As a good network."""
        self.delay_s = self.stall_share = self.stall_s = self.bytes_per_s = 0.0
        self.cut_after = None
        self.is_open.set()


class Connection:
    """One connection through the proxy: two sockets and the pumps between them."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far

    def reset(self) -> None:
        """Both ends see a reset."""
        reset(self.near)
        reset(self.far)


class TcpProxy:
    """Passes connections on to a target; `address` is where it listens."""

    def __init__(self, target_port: int, host: str, target_host: str, seed: int) -> None:
        self.host = host
        self.port = 0
        self.up = Lane()
        self.down = Lane()
        self.num_connections = 0
        self._target = (target_host, target_port)
        self._rng = random.Random(seed)
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_whole = asyncio.Event()  # clear while connections are half open
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    @property
    def is_used(self) -> bool:
        """True while a connection leads through it."""
        return bool(self._open)

    async def start(self, port: int = 0) -> None:
        """Listens."""
        self.up.heal()
        self.down.heal()
        self._is_whole.set()
        self._server = await asyncio.start_server(self._accept, self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends every connection and waits for its pumps."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self) -> None:
        """New connections are refused, open ones reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Open connections are reset; new ones are taken."""
        for connection in list(self._open):
            connection.reset()

    def black_hole(self) -> None:
        """Nothing goes on in either direction; connections stay, and new ones are taken."""
        self.up.is_open.clear()
        self.down.is_open.clear()

    def half_open(self) -> None:
        """The target's side of every connection is gone, and the client's side is not told."""
        self._is_whole.clear()
        for connection in self._open:
            reset(connection.far)

    async def heal(self) -> None:
        """As a good network again; connections that hung half open are reset at last."""
        self.up.heal()
        self.down.heal()
        if not self._is_whole.is_set():
            self._is_whole.set()
            self.reset()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            reset(writer)
            return
        connection = Connection(writer, far_writer)
        self._open.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(self.up, reader, far_writer, connection))
                group.create_task(self._pump(self.down, far_reader, writer, connection))
        finally:
            self._open.discard(connection)
            connection.reset()

    async def _pump(
        self, lane: Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection
    ) -> None:
        """Carries one direction until it ends; an end by reset is passed on as one."""
        is_reset = False
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._hold_up(lane, len(data))
                if lane.cut_after is not None and len(data) >= lane.cut_after:
                    lane.cut_after = None
                    connection.reset()
                    return
                if lane.cut_after is not None:
                    lane.cut_after -= len(data)
                writer.write(data)
                await writer.drain()
                lane.passed_bytes += len(data)
        except OSError:
            is_reset = True
        if not self._is_whole.is_set():
            await self._is_whole.wait()  # whoever is left hears nothing, until the proxy heals or closes
            is_reset = True
        if is_reset:
            connection.reset()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _hold_up(self, lane: Lane, num_bytes: int) -> None:
        await lane.is_open.wait()
        wait_s = lane.delay_s
        if lane.stall_share and self._rng.random() < lane.stall_share:
            wait_s += lane.stall_s
        if lane.bytes_per_s:
            wait_s += num_bytes / lane.bytes_per_s
        if wait_s:
            await asyncio.sleep(wait_s)
        await lane.is_open.wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection so that the other side sees a reset; what was not sent is dropped."""
    end: socket.socket | None = writer.get_extra_info("socket")
    if end is not None and not writer.transport.is_closing():
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextlib.asynccontextmanager
async def tcp_proxy(
    target_port: int, *, host: str = "127.0.0.1", target_host: str = "127.0.0.1", seed: int = 0
) -> AsyncIterator[TcpProxy]:
    """A proxy in front of a port of this machine."""
    proxy = TcpProxy(target_port, host, target_host, seed)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
