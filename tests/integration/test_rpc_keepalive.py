"""Networks that fall silent under an open connection."""

import asyncio
import time
from typing import Any

import pytest
from baton.v1 import prefill_pb2, prefill_pb2_grpc

from services.common.errors import PeerUnreachable
from services.common.rpc.channel import open_channel, rpc_errors
from tests.harness.rpc import PEER, ScriptedPrefill, running_server


class Wire:
    """Carries bytes to a port of the loopback, as long as it is open; swallows nothing, delivers nothing when not."""

    def __init__(self, target: int) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.port = 0
        self.connections = 0
        self._target = target
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._tasks.append(asyncio.create_task(self._pump(reader, far_writer)))
        self._tasks.append(asyncio.create_task(self._pump(far_reader, writer)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


@pytest.mark.slow
async def test_a_black_hole_is_seen_by_keepalive():
    """A network that swallows everything ends a running call in seconds, not at its deadline."""
    entered = asyncio.Event()

    async def hold(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        entered.set()
        await asyncio.wait_for(asyncio.Event().wait(), 60)
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = hold
    async with running_server(prefill) as running, Wire(running.port) as wire:
        channel = open_channel(f"127.0.0.1:{wire.port}")
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)

        async def call() -> None:
            with rpc_errors(PEER):
                await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=60)

        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await entered.wait()
        wire.open.clear()
        started = time.monotonic()
        with pytest.raises(PeerUnreachable):
            await task
        assert time.monotonic() - started < 30
        await channel.close()


@pytest.mark.slow
async def test_an_idle_connection_is_kept():
    """Pings without calls in flight are allowed by the server; a quiet channel is not torn down for them."""
    prefill = ScriptedPrefill()
    async with running_server(prefill) as running, Wire(running.port) as wire:
        channel = open_channel(f"127.0.0.1:{wire.port}")
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        # Several ping intervals; a server that minds them answers the third with GOAWAY.
        await asyncio.sleep(21)
        await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        assert wire.connections == 1
        await channel.close()
