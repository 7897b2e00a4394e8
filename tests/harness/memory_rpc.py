"""gRPC without sockets, for processes that live in one event loop: what of `grpc.aio` this project uses.

`Network` takes the place of `grpc.aio.server` and `grpc.aio.insecure_channel`. Requests and answers are serialised as
ever and pass through the server's interceptors, so that all code but gRPC's own runs as it is. Every call belongs to
the process that makes it and to the one that serves it (`Network.as_process`); a process can be cut off at once, as by
SIGKILL, or frozen, as by SIGSTOP.
"""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import grpc

from services.common.rpc.limits import KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS
from tests.harness.memory_call import MemoryCall
from tests.harness.memory_server import MemoryServer

LATENCY_S = 0.0005
KEEPALIVE_S = (KEEPALIVE_TIME_MS + KEEPALIVE_TIMEOUT_MS) / 1000
_FIRST_PORT = 40000

_process: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="client")


def current_process() -> str:
    """The process that the running code belongs to."""
    return _process.get()


class Network:
    """All servers and calls. Thread: the event loop's."""

    def __init__(self) -> None:
        self._servers: dict[str, MemoryServer] = {}
        self._calls: set[MemoryCall] = set()
        self._dead: set[str] = set()
        self._frozen: set[str] = set()
        self._thawed = asyncio.Event()
        self._last_port = _FIRST_PORT

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the place of gRPC's sockets."""
        with mock.patch("grpc.aio.server", self._server), mock.patch("grpc.aio.insecure_channel", self._channel):
            yield

    @contextmanager
    def as_process(self, name: str) -> Iterator[None]:
        """Servers, channels and tasks made within belong to this process."""
        token = _process.set(name)
        try:
            yield
        finally:
            _process.reset(token)

    def cut(self, process: str) -> None:
        """The process is gone for everybody: its calls break on both sides, and it reaches nobody any more."""
        self._dead.add(process)
        for address in [address for address, server in self._servers.items() if server.process == process]:
            del self._servers[address]
        for call in [call for call in self._calls if process in call.parties]:
            call.fail(grpc.StatusCode.UNAVAILABLE, "connection reset by peer")

    def freeze(self, process: str) -> None:
        """Nothing leaves or reaches the process until it is thawed; keepalive gives its connections up before long."""
        self._frozen.add(process)
        asyncio.get_running_loop().call_later(KEEPALIVE_S, self._give_up, process)

    def thaw(self, process: str) -> None:
        """What was held goes on."""
        self._frozen.discard(process)
        self._thawed.set()
        self._thawed = asyncio.Event()

    def is_frozen(self, process: str) -> bool:
        """True while it stands still."""
        return process in self._frozen

    async def travel(self, call: MemoryCall) -> None:
        """The way of a message: a moment, longer while a party is frozen."""
        await asyncio.sleep(LATENCY_S)
        while self._frozen & set(call.parties):
            await self._thawed.wait()

    def listen(self, server: MemoryServer, host: str, port: int) -> int:
        """Gives a server an address.

        Raises:
            RuntimeError: somebody has it.
        """
        if not port:
            self._last_port += 1
            port = self._last_port
        address = f"{host}:{port}"
        if address in self._servers:
            raise RuntimeError(f"{address} is in use")
        self._servers[address] = server
        return port

    def leave(self, server: MemoryServer) -> None:
        """Takes a server's addresses away."""
        self._servers = {address: each for address, each in self._servers.items() if each is not server}

    def call(self, call: MemoryCall, address: str) -> None:
        """Brings a call to the server at an address, where there is one."""
        server = self._servers.get(address)
        self._calls.add(call)
        call.on_end(lambda: self._calls.discard(call))
        if server is None or call.parties[0] in self._dead:
            refused = (grpc.StatusCode.UNAVAILABLE, "connection refused")
            asyncio.get_running_loop().call_later(LATENCY_S, call.fail, *refused)
            return
        call.parties = (call.parties[0], server.process)
        server.serve(call)

    def _give_up(self, process: str) -> None:
        if process in self._frozen:
            for call in [call for call in self._calls if process in call.parties]:
                call.fail(grpc.StatusCode.UNAVAILABLE, "ping timeout")

    def _server(self, **options: Any) -> MemoryServer:
        return MemoryServer(self, current_process(), options.get("interceptors") or ())

    def _channel(self, address: str, options: Any = None) -> "MemoryChannel":
        return MemoryChannel(self, address)


class MemoryChannel:
    """As `grpc.aio.Channel`."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._process = current_process()
        self._calls: set[MemoryCall] = set()
        self._is_closed = False

    async def __aenter__(self) -> "MemoryChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """As gRPC's; a call that is awaited."""
        return self._starter(method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """As gRPC's; a call that is read."""
        return self._starter(method, request_serializer, response_deserializer)

    def stream_stream(self, *_: Any, **__: Any) -> Any:
        """Nothing of this project streams requests."""

    stream_unary = stream_stream

    async def close(self, grace: float | None = None) -> None:
        """As gRPC's: running calls raise CancelledError at their callers."""
        self._is_closed = True
        for call in list(self._calls):
            call.cancel()

    def _starter(self, method: str, serialize: Any, deserialize: Any) -> Callable[..., MemoryCall]:
        def start(request: Any, *, timeout: float | None = None, metadata: Any = None, **_: Any) -> MemoryCall:
            if self._is_closed:
                raise grpc.aio.UsageError("Channel is closed.")
            call = MemoryCall(self._network.travel, self._process, method, serialize(request), metadata or ())
            call.deserialize = deserialize
            self._calls.add(call)
            call.on_end(lambda: self._calls.discard(call))
            call.limit(timeout)
            self._network.call(call, self._address)
            return call

        return start
