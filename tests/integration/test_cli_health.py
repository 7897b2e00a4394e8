"""`baton health` and the launcher's health watch, against real servers."""

import asyncio
import contextlib
import socket

import pytest

from services.cli.free_ports import FreePorts
from services.cli.health import check_health, watch_health
from services.common.errors import BatonError, NotFound, PeerUnreachable
from services.common.rpc.server import LIVENESS, RpcServer

HOST = "127.0.0.1"


async def test_a_check_tells_serving_from_not_serving() -> None:
    """The answer is that of the whole process, and follows it."""
    server = RpcServer(HOST, 0, [])
    address = f"{HOST}:{await server.start()}"
    try:
        assert not await check_health(address, 30)
        server.set_serving(True)
        assert await check_health(address, 30)
    finally:
        await server.stop(0)


async def test_liveness_is_a_state_of_its_own() -> None:
    """Alive from the start, whether ready or not, until it is said to be gone."""
    server = RpcServer(HOST, 0, [])
    address = f"{HOST}:{await server.start()}"
    try:
        server.set_serving(False)
        assert await check_health(address, 30, LIVENESS)
        server.set_serving(False, LIVENESS)
        server.set_serving(True)
        assert not await check_health(address, 30, LIVENESS)
        assert await check_health(address, 30)
    finally:
        await server.stop(0)


async def test_an_unknown_service_is_an_error() -> None:
    """Asking for a service that is not there is no "not serving"."""
    server = RpcServer(HOST, 0, [])
    address = f"{HOST}:{await server.start()}"
    try:
        with pytest.raises(NotFound):
            await check_health(address, 30, "no.such.Service")
    finally:
        await server.stop(0)


async def test_nobody_there_is_an_error_soon() -> None:
    """A port without a listener is reported as such, not after the timeout."""
    with pytest.raises(PeerUnreachable):
        async with asyncio.timeout(30):
            await check_health(f"{HOST}:{FreePorts(HOST).take()}", 90)


async def test_a_process_that_never_answers_is_an_error_in_time() -> None:
    """A listener that does not speak gRPC is given up at the timeout."""
    with socket.create_server((HOST, 0)) as silent:
        address = f"{HOST}:{silent.getsockname()[1]}"
        with pytest.raises(BatonError):
            async with asyncio.timeout(30):
                await check_health(address, 0.3)


async def test_a_watch_follows_a_process_over_its_lives() -> None:
    """The watch starts before the process does, and sees it serve, stop serving, die, and serve again."""
    port = FreePorts(HOST).take()
    async with contextlib.aclosing(watch_health(f"{HOST}:{port}")) as states, asyncio.timeout(60):
        for _ in range(2):
            first = asyncio.ensure_future(anext(states))
            server = RpcServer(HOST, port, [])
            await server.start()
            server.set_serving(True)
            while not await first:
                first = asyncio.ensure_future(anext(states))
            server.set_serving(False)
            assert not await anext(states)
            server.set_serving(True)
            assert await anext(states)
            await server.stop(0)
            assert not await anext(states)
