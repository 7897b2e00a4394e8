"""Asks processes whether they serve, through the standard gRPC health service.

`baton health ADDRESS` is what container health checks run; `watch_health` is what the launcher waits on.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.deep_health import deep_check, show
from services.common.errors import BatonError
from services.common.ports import split_address
from services.common.rpc.channel import answered, open_channel, rpc_errors
from services.common.rpc.health import LIVENESS

_RETRY_S = 0.1
_SERVING: int = health_pb2.HealthCheckResponse.SERVING


async def check_health(address: str, timeout_s: float, service: str = "") -> bool:
    """True where the process at host:port serves now.

    Raises:
        BatonError: it cannot be reached within `timeout_s`, or does not know the service.
    """
    async with contextlib.AsyncExitStack() as stack:
        channel = open_channel(address)
        stack.push_async_callback(channel.close)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with rpc_errors(address):
            asking = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
            answer = answered(await asking, address)
    return answer.status == _SERVING


async def watch_health(address: str) -> AsyncIterator[bool]:
    """Yields whether the process at host:port serves: soon, and after every change, until it is closed.

    A process that cannot be reached does not serve; it is tried again as long as the iterator lives.
    """
    last: bool | None = None
    while True:
        async with contextlib.AsyncExitStack() as stack:
            await _listening(address)
            # A channel of its own each time: a known one would wait out its reconnection backoff.
            channel = open_channel(address)
            stack.push_async_callback(channel.close)
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                    is_serving = bool(answer.status == _SERVING)
                    if is_serving != last:
                        last = is_serving
                        yield is_serving
        if last is not False:
            last = False
            yield False
        await asyncio.sleep(_RETRY_S)


async def _listening(address: str) -> None:
    """Returns once something listens at host:port."""
    host, port = split_address(address)
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(_RETRY_S)
        else:
            writer.close()
            return


def health(
    address: Annotated[str, typer.Argument(help="host:port of a process")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 2.0,
    service: Annotated[str, typer.Option(help="Full name of one gRPC service; empty asks for the whole process.")] = "",
    live: Annotated[bool, typer.Option("--live", help="Ask whether it is alive; if not, a restart helps.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Have a worker try out its engine and channels.")] = False,
) -> None:
    """Ask a process whether it serves; exit code 0 means yes."""
    try:
        if deep:
            sys.exit(0 if show(asyncio.run(deep_check(address, timeout))) else 1)
        is_serving = asyncio.run(check_health(address, timeout, LIVENESS if live else service))
    except BatonError as error:
        typer.echo(error.message, err=True)
        sys.exit(1)
    typer.echo("serving" if is_serving else "not serving")
    sys.exit(0 if is_serving else 1)
