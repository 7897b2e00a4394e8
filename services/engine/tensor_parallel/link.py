"""The connection between two ranks: messages over a socket that no other process can reach.

A message is its kind, the turn that it belongs to, and bytes. Whatever goes wrong with the other rank shows here: its
death closes the socket, its hanging lets a deadline pass.
"""

import contextlib
import enum
import socket
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("=BBI")
_TIMEVAL = struct.Struct("@ll")
SEND_TIMEOUT_S = 20.0
# A wait is over after so many parts of it, not after its seconds: where the whole worker stood still, one was long.
_LOOKS = 10


class RankLost(Exception):
    """Another rank of the worker died, hangs, or does something else; the ranks cannot go on together."""


class Kind(enum.IntEnum):
    """What a message says."""

    LOADED = 1  # from a rank, once: the shape of its model; or why there is none
    REFUSED = 2
    BEGIN = 3  # from rank 0, once: how the model is loaded; then, where its KV is
    STEP = 4  # from rank 0: what to compute
    MEET = 5  # to every rank: what I compute for this turn lies in the exchange
    ABANDON = 6  # to every rank: this step failed here
    STOP = 7  # from rank 0: the engine is closed


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `turn` counts meetings, modulo 256."""

    kind: Kind
    turn: int
    payload: bytes


class Link:
    """One end. Thread: one at a time; `close` may be called on any and wakes who waits."""

    def __init__(self, sock: socket.socket, peer: int) -> None:
        self.peer = peer
        self._socket = sock
        self._timeout_s = 0.0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))

    def send(self, kind: Kind, turn: int = 0, payload: bytes = b"") -> None:
        """Sends a message; waits only where the other rank does not read, at most `SEND_TIMEOUT_S`.

        Raises:
            RankLost: the other rank is gone or does not read.
        """
        try:
            self._socket.sendall(_HEADER.pack(kind, turn, len(payload)) + payload)
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, timeout_s: float) -> Message:
        """Waits for a message, `timeout_s` at most; 0 waits as long as the other rank lives.

        Raises:
            RankLost: the other rank is gone, or the time is up.
        """
        self._set_timeout(timeout_s)
        kind, turn, length = _HEADER.unpack(self._receive(_HEADER.size))
        try:
            return Message(Kind(kind), turn, self._receive(length) if length else b"")
        except ValueError as error:
            raise RankLost(
                f"rank {self.peer} sent a message of unknown kind {kind}; the worker must restart"
            ) from error

    def fileno(self) -> int:
        """The socket, to hand it to another process."""
        return self._socket.fileno()

    def release(self) -> None:
        """Drops this process's hold of the socket, which another process has; the connection stays."""
        self._socket.close()

    def close(self) -> None:
        """Ends the connection for both sides; idempotent."""
        with contextlib.suppress(OSError):  # the other side closed it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self, count: int) -> bytes:
        parts: list[bytes] = []
        looks = 0
        while count:
            try:
                part = self._socket.recv(count, socket.MSG_WAITALL)
            except BlockingIOError as error:
                looks += 1
                if looks == _LOOKS:
                    raise self._lost(error) from error
                continue
            except OSError as error:
                raise self._lost(error) from error
            if not part:
                raise RankLost(f"rank {self.peer} is gone; the worker must restart")
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _set_timeout(self, timeout_s: float) -> None:
        """By socket option: Python's own timeouts cost one more system call for every message."""
        if timeout_s == self._timeout_s:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout_s / _LOOKS))
        except OSError as error:
            raise self._lost(error) from error
        self._timeout_s = timeout_s

    def _lost(self, error: OSError) -> RankLost:
        if isinstance(error, BlockingIOError):
            return RankLost(f"rank {self.peer} does not answer in time; the worker must restart")
        return RankLost(f"rank {self.peer} is gone ({error}); the worker must restart")


def _timeval(timeout_s: float) -> bytes:
    """As the kernel takes it; 0 is no limit."""
    whole = int(timeout_s)
    return _TIMEVAL.pack(whole, int((timeout_s - whole) * 1e6))


def link_pair(first: int, second: int) -> tuple[Link, Link]:
    """Connects two ranks: the first one's end, and the second one's."""
    ours, theirs = socket.socketpair()
    return Link(ours, second), Link(theirs, first)
