"""`baton drain`: empties a worker before it is stopped, without failing a request."""

import asyncio
import sys
from typing import Annotated

import typer

from services.common.errors import BatonError
from services.common.rpc.channel import open_channel
from services.common.worker_client import WorkerClient

# Time for the answer to come back after the drain's own.
MARGIN_S = 2.0

MoveAfter = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds after which what still runs moves to other workers; none: the worker's own."),
]
Now = Annotated[bool, typer.Option("--now", help="Move what runs to other workers at once.")]


def drain(
    address: Annotated[str, typer.Argument(help="host:port of a prefill or decode worker")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the running requests.")] = 60.0,
    move_after: MoveAfter = None,
    now: Now = False,
) -> None:
    """Empty a worker: it takes nothing new, finishes or moves what it has; exit code 0 means that nothing is left."""
    try:
        remaining = asyncio.run(_drain(address, timeout, 0.0 if now else move_after))
    except BatonError as error:
        typer.echo(error.message, err=True)
        sys.exit(1)
    typer.echo("drained" if remaining == 0 else f"{remaining} requests still run after {timeout:g} s")
    sys.exit(0 if remaining == 0 else 1)


async def _drain(address: str, timeout_s: float, move_after_s: float | None) -> int:
    channel = open_channel(address)
    try:
        return await WorkerClient(channel, address).drain(timeout_s + MARGIN_S, move_after_s)
    finally:
        await channel.close()
