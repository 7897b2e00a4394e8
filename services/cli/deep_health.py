"""`baton health --deep`: has a worker try out everything that a request needs, and shows what it found."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.common.check_item import CheckItem
from services.common.rpc.channel import open_channel
from services.common.worker_client import WorkerClient


async def deep_check(address: str, timeout_s: float) -> tuple[CheckItem, ...]:
    """Asks the worker at host:port.

    Raises:
        BatonError: it cannot be asked within `timeout_s`.
    """
    channel = open_channel(address)
    try:
        return await WorkerClient(channel, f"the worker at {address}").check(timeout_s)
    finally:
        await channel.close()


def show(items: Sequence[CheckItem]) -> bool:
    """Prints a line an item; True where everything works."""
    drawn = Table("item", "state", "latency", "oldest", "message", box=None, pad_edge=False)
    for item in items:
        state = Text(item.error, style="red") if item.error else Text("ok", style="green")
        drawn.add_row(Text(item.name), state, _ms(item.latency_ns), _ms(item.age_ns), Text(item.message))
    Console(soft_wrap=True).print(drawn)
    return not any(item.error for item in items)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms" if nanoseconds else "–"
