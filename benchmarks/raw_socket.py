"""A plain TCP pair on loopback: what the handoff is compared with.

The client asks for a number of bytes; the server sends them in messages of a size, each with one call. Nothing is
hashed, and nothing is copied but by the kernel.
"""

import contextlib
import socket
import struct
import threading

_REQUEST = struct.Struct("<QQ")  # total bytes, bytes of a message
_TIMEOUT_S = 60.0


class RawServer:
    """Serves one connection after the other on a thread of its own; `close` ends it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="raw-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; a connection that is open ends with its client."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_TIMEOUT_S)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    _send_all(connection)


class RawClient:
    """Asks a `RawServer`; close it before another one asks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fetch(self, buffer: memoryview, message_bytes: int) -> None:
        """Fills the buffer.

        Raises:
            ConnectionError: the server ended early.
        """
        self._socket.sendall(_REQUEST.pack(len(buffer), message_bytes))
        _receive(self._socket, buffer)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()


def _send_all(connection: socket.socket) -> None:
    """Answers every request of one client."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = memoryview(bytearray(_REQUEST.size))
    data = memoryview(b"")
    with contextlib.suppress(ConnectionError):
        while True:
            _receive(connection, request)
            left, size = _REQUEST.unpack(request)
            data = data if len(data) >= size else memoryview(bytearray(size))
            while left:
                sent = min(left, size)
                connection.sendall(data[:sent])
                left -= sent


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    while buffer:
        received = connection.recv_into(buffer)
        if not received:
            raise ConnectionError("the other side closed the connection")
        buffer = buffer[received:]
