"""One side of a channel: order, failure, abort and what is left afterwards."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch

from services.common.errors import ChannelBroken, QueueFull
from services.kvtransfer.channel import MAX_OPERATIONS, Channel, ChannelState
from services.kvtransfer.rendezvous import SourceKeys
from services.kvtransfer.staging import Staging
from services.kvtransfer.transport.base import Meeting, Transport
from services.kvtransfer.transport.memory import MemoryExchange

WAIT_S = 20.0
# The limit of an operation: longer than a test waits, so that an end by itself is told from one by its limit.
LONG_S = 60.0


def meeting(rank: int) -> Meeting:
    return Meeting(rank=rank, name="p", keys=SourceKeys())


def make(open_transport: Callable[[], Transport]) -> Channel:
    return Channel("test", open_transport, Staging(16, 32))


def joined() -> tuple[Channel, Channel]:
    exchange = MemoryExchange()
    return make(partial(exchange.open, meeting(0), LONG_S)), make(partial(exchange.open, meeting(1), LONG_S))


async def open_both() -> tuple[Channel, Channel]:
    left, right = joined()
    await asyncio.gather(left.open(), right.open())
    left.mark_ready()
    right.mark_ready()
    return left, right


def receive(into: list[list[int]]) -> Callable[[Transport, Staging], None]:
    def operation(link: Transport, staging: Staging) -> None:
        data = staging.take(4)
        try:
            link.receive(data, LONG_S)
            into.append(data.tolist())
        finally:
            staging.give(data)

    return operation


def send(value: int) -> Callable[[Transport, Staging], None]:
    return lambda link, _: link.send(torch.full((4,), value, dtype=torch.uint8), LONG_S)


async def close(*channels: Channel) -> None:
    for channel in channels:
        channel.abort(ChannelBroken("the test is over"))
    assert all([await channel.wait_ended(WAIT_S) for channel in channels])


async def test_operations_run_in_order_on_one_thread() -> None:
    """Messages arrive in the order in which operations were submitted."""
    left, right = await open_both()
    got: list[list[int]] = []
    received = [right.submit(receive(got)) for _ in range(10)]
    sent = [left.submit(send(value)) for value in range(10)]
    await asyncio.gather(*received, *sent)
    assert got == [[value] * 4 for value in range(10)]
    await close(left, right)


async def test_failed_operation_breaks_the_channel() -> None:
    """What an operation raises reaches its caller as a typed error, and nothing runs after it."""
    left, right = await open_both()

    def fail(link: Transport, staging: Staging) -> None:
        raise RuntimeError("wires crossed")

    failing = left.submit(fail)
    after = left.submit(send(1))
    with pytest.raises(ChannelBroken, match="wires crossed"):
        await failing
    with pytest.raises(ChannelBroken, match="wires crossed"):
        await after
    assert await left.wait_ended(WAIT_S)
    assert left.state is ChannelState.BROKEN
    with pytest.raises(ChannelBroken):
        left.submit(send(1))
    await close(right)


async def test_abort_is_idempotent_and_wakes_everybody() -> None:
    """A receive that nobody sends to ends with the abort's error, and so does all that waited behind it."""
    left, right = await open_both()
    waiting = [right.submit(receive([])) for _ in range(3)]
    right.abort(ChannelBroken("aborted on purpose"))
    right.abort(ChannelBroken("a second reason that nobody sees"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, ChannelBroken) for result in results)
    assert right.error is not None
    assert right.error.message == "aborted on purpose"
    await close(left, right)


async def test_peers_abort_is_seen_at_once() -> None:
    """When one side goes, the other's operation fails; it does not wait for its timeout."""
    left, right = await open_both()
    waiting = right.submit(receive([]))
    left.abort(ChannelBroken("gone"))
    with pytest.raises(ChannelBroken):
        async with asyncio.timeout(WAIT_S):
            await waiting
    await close(left, right)


async def test_abort_before_open_leaves_no_thread() -> None:
    """A channel that was never opened has nothing to wait for."""
    left, _ = joined()
    left.abort(ChannelBroken("never mind"))
    assert await left.wait_ended(0)
    assert left.has_ended


async def test_failed_open_is_typed_and_ends_the_thread() -> None:
    """A peer that does not come is an error within the timeout, and the thread is gone."""
    channel = make(partial(MemoryExchange().open, meeting(0), 0.05))
    with pytest.raises(ChannelBroken, match="did not come"):
        await channel.open()
    assert await channel.wait_ended(WAIT_S)
    assert channel.state is ChannelState.BROKEN


async def test_operations_are_bounded() -> None:
    """A caller that does not wait for its operations is refused, not queued for ever."""
    left, right = await open_both()
    may_go_on = threading.Event()
    has_begun = threading.Event()

    def block(link: Transport, staging: Staging) -> None:
        has_begun.set()
        may_go_on.wait(WAIT_S)

    submitted = [left.submit(block)]
    assert await asyncio.to_thread(has_begun.wait, WAIT_S)
    submitted += [left.submit(send(1)) for _ in range(MAX_OPERATIONS)]
    with pytest.raises(QueueFull):
        left.submit(send(1))
    left.abort(ChannelBroken("enough"))
    may_go_on.set()
    await asyncio.gather(*submitted, return_exceptions=True)
    await close(left, right)


async def test_end_gives_staging_and_transport_back() -> None:
    """After the end no staging bytes are held and the threads are gone."""
    before = set(threading.enumerate())
    left, right = await open_both()
    ours = [thread for thread in threading.enumerate() if thread not in before]
    got: list[list[int]] = []
    await asyncio.gather(right.submit(receive(got)), left.submit(send(3)))
    assert right.stats()["staging_bytes"] == 16
    assert right.stats()["received_bytes"] == 4
    await close(left, right)
    assert right.stats()["staging_bytes"] == 0
    assert right.stats()["received_bytes"] == 4
    for thread in ours:
        await asyncio.to_thread(thread.join, WAIT_S)
        assert not thread.is_alive()


async def test_error_does_not_keep_frames() -> None:
    """A kept error must not keep the transport alive through its traceback."""
    left, right = await open_both()

    def fail(link: Transport, staging: Staging) -> None:
        try:
            raise RuntimeError("inner")
        except RuntimeError as error:
            raise ChannelBroken("outer") from error

    failing = left.submit(fail)
    assert await left.wait_ended(WAIT_S)
    error = failing.exception()
    assert error is not None
    assert error.__traceback__ is None
    assert error.__cause__ is None
    await close(right)
