"""Tries out everything that a request needs of a worker: its engine, its channels, its block accounts."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from services.common.changes import Changes
from services.common.check_item import CheckItem
from services.common.errors import BatonError, DeadlineExceeded
from services.common.types import Load

# Blocks of what just ended are given back within a few turns of the engine thread.
_ACCOUNTS_SETTLE_S = 1.0

Probe = Callable[[float], Awaitable[None]]


class Tried(Protocol):
    """What a tier offers for it."""

    @property
    def changes(self) -> Changes:
        """Notified when the load changed."""
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    async def try_out(self, deadline: float) -> None:
        """Runs a tiny request."""
        ...

    def channels(self) -> Mapping[str, Probe]:
        """A tiny transfer for each peer, by its name; each takes its deadline (monotonic)."""
        ...


async def deep_check(worker: Tried, check_liveness: Callable[[], None], deadline: float) -> tuple[CheckItem, ...]:
    """Tries everything at once; each item is there by `deadline` (monotonic), whatever becomes of the others.

    `check_liveness` raises where the engine is known to hang.
    """

    async def engine() -> None:
        check_liveness()
        await worker.try_out(deadline)

    trials = {"engine": engine()}
    trials |= {f"channel {peer}": _awaited(probe, deadline) for peer, probe in sorted(worker.channels().items())}
    age_ns = worker.load().counters.get("oldest_handoff_ms", 0) * 1_000_000
    tried = await asyncio.gather(*(_tried(name, trial, deadline) for name, trial in trials.items()))
    return (*tried, await _blocks(worker, deadline), CheckItem(name="handoffs", age_ns=age_ns))


async def _awaited(probe: Probe, deadline: float) -> None:
    await probe(deadline)


async def _tried(name: str, trial: Awaitable[None], deadline: float) -> CheckItem:
    began = time.monotonic_ns()
    error: BatonError | None = None
    try:
        async with asyncio.timeout_at(deadline):
            await trial
    except BatonError as caught:
        error = caught
    except TimeoutError:
        error = DeadlineExceeded("it did not answer in time")
    latency_ns = time.monotonic_ns() - began
    if error is None:
        return CheckItem(name=name, latency_ns=latency_ns)
    return CheckItem(name=name, latency_ns=latency_ns, error=type(error).__name__, message=error.message)


async def _blocks(worker: Tried, deadline: float) -> CheckItem:
    """The accounts agree: every block is free or held, and none is held for nobody."""
    end = min(deadline, time.monotonic() + _ACCOUNTS_SETTLE_S)
    while (fault := block_fault(worker.load())) and (left := end - time.monotonic()) > 0:
        await worker.changes.wait(worker.changes.count, left)
    return CheckItem(name="blocks", error="Internal" if fault else "", message=fault)


def block_fault(load: Load) -> str:
    """What is wrong with a worker's block accounts; empty where nothing is."""
    held = load.counters.get("blocks_held", 0)
    if load.free_blocks + held != load.total_blocks:
        return f"{load.free_blocks} blocks are free and {held} held, of {load.total_blocks}"
    users = load.running_requests + load.waiting_requests + load.handoffs + load.counters.get("live_requests", 0)
    return f"{held} blocks are held, but no request is there" if held and not users else ""
