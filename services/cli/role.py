"""`baton role`: makes a running worker serve another tier, without failing a request."""

import asyncio
import sys
from typing import Annotated

import typer

from services.cli.drain import MoveAfter, Now
from services.common.errors import BatonError
from services.common.rpc.channel import open_channel
from services.common.types import Tier, WorkerInfo
from services.common.worker_client import WorkerClient


def role(
    address: Annotated[str, typer.Argument(help="host:port of a prefill or decode worker")],
    tier: Annotated[Tier, typer.Argument(help="The tier that it shall serve.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the whole switch may take.")] = 60.0,
    move_after: MoveAfter = None,
    now: Now = False,
) -> None:
    """Switch a worker to another tier; exit code 1 means that it is what it was, and says why."""
    try:
        worker = asyncio.run(_switch(address, tier, timeout, 0.0 if now else move_after))
    except BatonError as error:
        typer.echo(error.message, err=True)
        sys.exit(1)
    typer.echo(f"{worker.worker_id} serves the {worker.tier.value} tier (incarnation {worker.incarnation})")


async def _switch(address: str, tier: Tier, timeout_s: float, move_after_s: float | None) -> WorkerInfo:
    channel = open_channel(address)
    try:
        return await WorkerClient(channel, address).switch_role(tier, timeout_s, move_after_s)
    finally:
        await channel.close()
