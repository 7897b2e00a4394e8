"""The proxy hurts links as it says: otherwise rows that pass behind it would prove nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.harness.tcp_proxy import TcpProxy, reset, tcp_proxy
from tests.harness.tiers import until

Link = tuple[TcpProxy, asyncio.StreamReader, asyncio.StreamWriter]
SHORT_S = 0.2
LONG_S = 30.0


@contextlib.asynccontextmanager
async def echo_link() -> AsyncIterator[Link]:
    """A connection through a proxy to a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with tcp_proxy(server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        yield proxy, reader, writer
        writer.transport.abort()
    server.close()


async def echoed(link: Link, data: bytes, timeout_s: float = LONG_S) -> bytes:
    """What comes back."""
    _, reader, writer = link
    writer.write(data)
    async with asyncio.timeout(timeout_s):
        return await reader.readexactly(len(data))


async def test_a_good_link_passes_everything_on():
    """Without a fault the proxy is invisible."""
    async with echo_link() as link:
        assert await echoed(link, b"x" * 200_000) == b"x" * 200_000


async def test_a_black_hole_is_silent_and_heals():
    """Nothing comes, nobody is told, and what was sent arrives after all."""
    async with echo_link() as link:
        link[0].black_hole()
        with pytest.raises(TimeoutError):
            await echoed(link, b"lost", SHORT_S)
        await link[0].heal()
        async with asyncio.timeout(LONG_S):
            assert await link[1].readexactly(4) == b"lost"


@pytest.mark.parametrize("lane", ["up", "down"])
async def test_one_direction_alone_can_be_closed(lane: str):
    """A lane that is closed holds up its own direction."""
    async with echo_link() as link:
        getattr(link[0], lane).is_open.clear()
        with pytest.raises(TimeoutError):
            await echoed(link, b"x", SHORT_S)
        if lane == "down":
            await until(lambda: link[0].up.passed_bytes == 1)
        assert link[0].up.passed_bytes == (0 if lane == "up" else 1)


async def test_a_reset_is_seen_at_once():
    """Open connections end with an error, new ones work."""
    async with echo_link() as link:
        await echoed(link, b"x")
        link[0].reset()
        with pytest.raises(OSError, match="reset"):
            await link[1].read(1)
        again = await asyncio.open_connection(link[0].host, link[0].port)
        assert await echoed((link[0], *again), b"y") == b"y"


async def test_refused_connections_and_back():
    """While it refuses nobody gets in; once healed, at the same address."""
    async with echo_link() as link:
        link[0].refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(link[0].host, link[0].port)
        await link[0].heal()
        again = await asyncio.open_connection(link[0].host, link[0].port)
        assert await echoed((link[0], *again), b"y") == b"y"


async def test_half_open_tells_nobody():
    """The target is gone, the client's connection stays as if nothing had happened."""
    async with echo_link() as link:
        await echoed(link, b"x")
        link[0].half_open()
        with pytest.raises(TimeoutError):
            await echoed(link, b"y", SHORT_S)


async def test_half_open_connections_end_when_the_link_heals():
    """Who was not told is told by a reset at last, and the proxy keeps nothing of the connection."""
    async with echo_link() as link:
        await echoed(link, b"x")
        link[0].half_open()
        await link[0].heal()
        async with asyncio.timeout(LONG_S):
            with pytest.raises(OSError, match="reset"):
                await link[1].read(1)
            await until(lambda: not link[0].is_used)


async def test_a_reset_by_the_client_is_passed_on():
    """The target sees a reset where the client made one, not an ordinary end."""
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def notice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            ends.put_nowait("end")
        except ConnectionResetError:
            ends.put_nowait("reset")
        writer.close()

    server = await asyncio.start_server(notice, "127.0.0.1", 0)
    async with tcp_proxy(server.sockets[0].getsockname()[1]) as proxy, asyncio.timeout(LONG_S):
        _, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        await until(lambda: proxy.up.passed_bytes > 0)
        reset(writer)
        assert await ends.get() == "reset"
    server.close()


async def test_a_cut_comes_after_so_many_bytes():
    """The connection is reset once the lane has carried its bytes."""
    async with echo_link() as link:
        link[0].up.cut_after = 1_000
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await echoed(link, b"x" * 200_000)
        assert link[0].up.passed_bytes < 200_000


@pytest.mark.parametrize("fault", [{"delay_s": 0.2}, {"stall_share": 1.0, "stall_s": 0.2}, {"bytes_per_s": 1e6}])
async def test_slow_links_are_slow_and_lose_nothing(fault: dict[str, float]):
    """Delay, stalls and a cap on bandwidth cost time and no byte."""
    async with echo_link() as link:
        for name, value in fault.items():
            setattr(link[0].down, name, value)
        started = time.monotonic()
        data = bytes(range(256)) * 800
        assert await echoed(link, data) == data
        assert time.monotonic() - started > 0.15
