"""`baton status`: who is there and how busy, from the directory and the workers themselves."""

import asyncio
import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.common.errors import BatonError, DeadlineExceeded
from services.common.ports import KVTRANSFER
from services.common.rpc.channel import open_channel
from services.common.types import Load, Membership, WorkerInfo
from services.common.worker_client import WorkerClient
from services.kvtransfer.directory.client import DirectoryClient

_BAR_CELLS = 10
_LEAST_WIDTH = 150
_COLUMNS = "worker tier state queue outstanding running KV handoffs channels incarnation address".split()
_STYLES = {"ready": "green", "draining": "yellow", "unreachable": "red"}


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker of the membership; `load` is None where it could not be asked."""

    worker: WorkerInfo
    load: Load | None

    @property
    def state(self) -> str:
        """One of ready, draining, unreachable."""
        if self.load is None:
            return "unreachable"
        return "draining" if self.load.draining else "ready"


def status(
    directory: Annotated[str, typer.Option(help="host:port of the directory.")] = f"127.0.0.1:{KVTRANSFER}",
    watch: Annotated[bool, typer.Option("--watch", help="Go on, as a live table, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks with --watch.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each answer.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a look.")] = False,
) -> None:
    """Show the workers that the directory knows and how busy each is."""
    try:
        if watch:
            asyncio.run(_watch(directory, interval, timeout, as_json=as_json))
        else:
            _show(asyncio.run(look(directory, timeout)), as_json=as_json)
    except BatonError as error:
        typer.echo(f"{type(error).__name__}: {error.message}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


async def look(directory: str, timeout_s: float) -> tuple[Membership, list[WorkerStatus]]:
    """Asks the directory who is there, and then everybody how busy they are.

    Raises:
        BatonError: the directory does not answer within `timeout_s`; workers that do not are unreachable, no error.
    """
    membership = await _membership(directory, timeout_s)
    return membership, await asyncio.gather(*(_ask(worker, timeout_s) for worker in membership.workers))


def table(membership: Membership, workers: list[WorkerStatus]) -> Table:
    """The workers as a table, with the pairs that the directory refuses below."""
    refused = "\n".join(
        f"refused: {pair.prefill_worker_id} with {pair.decode_worker_id}: {pair.reason}"
        for pair in membership.refused_pairs
    )
    drawn = Table(box=None, pad_edge=False, caption=Text(refused) if refused else None, caption_justify="left")
    for column in _COLUMNS:
        drawn.add_column(column, no_wrap=True, overflow="fold")
    for each in workers:
        drawn.add_row(*_cells(each))
    return drawn


def _cells(each: WorkerStatus) -> list[str | Text]:
    worker, load = each.worker, each.load or Load()
    counts = [
        str(load.waiting_requests),
        str(load.outstanding_tokens),
        f"{load.running_requests}/{worker.max_num_seqs}",
        _bar(load),
        str(load.handoffs),
        str(load.channels),
    ]
    state = Text(each.state, style=_STYLES[each.state])
    shown = counts if each.load is not None else ["–"] * len(counts)
    # What others say of themselves is text, whatever brackets are in it.
    return [Text(worker.worker_id), worker.tier.value, state, *shown, Text(worker.incarnation), Text(worker.address)]


def _bar(load: Load) -> str:
    """Share of KV blocks in use, as a bar and in percent."""
    used = min(1.0, max(0.0, 1 - load.free_blocks / load.total_blocks)) if load.total_blocks else 0.0
    cells = round(used * _BAR_CELLS)
    return f"{'█' * cells}{'░' * (_BAR_CELLS - cells)} {used:4.0%}"


def _facts(membership: Membership, workers: list[WorkerStatus]) -> dict[str, object]:
    return {
        "revision": membership.revision,
        "workers": [
            {
                "state": each.state,
                **dataclasses.asdict(each.worker),
                "tier": each.worker.tier.value,
                "load": dataclasses.asdict(each.load) if each.load is not None else None,
            }
            for each in workers
        ],
        "refused_pairs": [dataclasses.asdict(pair) for pair in membership.refused_pairs],
    }


def _show(seen: tuple[Membership, list[WorkerStatus]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_facts(*seen)))
    elif seen[1]:
        # A line that the terminal wraps, or a pipe takes whole, is better than a column cut to nothing.
        Console(width=max(Console().width, _LEAST_WIDTH)).print(table(*seen))
    else:
        typer.echo("the directory knows no worker")


async def _watch(directory: str, interval_s: float, timeout_s: float, *, as_json: bool) -> None:
    """Looks again and again; a directory that goes away ends it with an error."""
    with contextlib.ExitStack() as stack:
        live = None if as_json else stack.enter_context(Live(auto_refresh=False, screen=False))
        while True:
            seen = await look(directory, timeout_s)
            if live is None:
                _show(seen, as_json=True)
            else:
                live.update(table(*seen), refresh=True)
            await asyncio.sleep(interval_s)


async def _membership(directory: str, timeout_s: float) -> Membership:
    client = DirectoryClient(directory)
    try:
        async with asyncio.timeout(timeout_s), contextlib.aclosing(client.watch()) as memberships:
            async for membership in memberships:
                return membership
        return Membership()
    except TimeoutError as error:
        raise DeadlineExceeded(f"directory {directory} did not answer within {timeout_s:g} s") from error
    finally:
        await client.close()


async def _ask(worker: WorkerInfo, timeout_s: float) -> WorkerStatus:
    channel = open_channel(worker.address)
    try:
        _, load = await WorkerClient(channel, worker.worker_id).describe(timeout_s)
    except BatonError:
        return WorkerStatus(worker, None)
    finally:
        await channel.close()
    return WorkerStatus(worker, load)
