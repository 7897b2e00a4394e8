"""Keys through which two sides find each other: waits end, bounds hold, errors are typed."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from datetime import timedelta

import pytest

from services.common.errors import ChannelBroken, DeadlineExceeded, InvalidRequest
from services.kvtransfer.rendezvous import MAX_KEYS, MAX_VALUE_BYTES, PairStore, SinkKeys, SourceKeys
from tests.harness.tiers import until


async def test_blocking_get_waits_for_the_other_side() -> None:
    """A key that comes later wakes the thread that waits for it."""
    keys = SourceKeys()
    getting = asyncio.create_task(asyncio.to_thread(keys.get, "k", 20.0))
    await asyncio.sleep(0)
    keys.set("k", b"v", 0.0)
    assert await getting == b"v"


async def test_read_on_the_loop_waits_for_a_thread() -> None:
    """A sink's read is answered when the source's thread sets the key."""
    keys = SourceKeys()
    reading = asyncio.create_task(keys.read("k", time.monotonic() + 20))
    await asyncio.sleep(0)
    threading.Thread(target=keys.set, args=("k", b"v", 0.0)).start()
    assert await reading == b"v"


async def test_waits_end_by_their_limit() -> None:
    """A side that never comes is a typed error, for thread and loop alike."""
    keys = SourceKeys()
    with pytest.raises(ChannelBroken, match="did not come"):
        await asyncio.to_thread(keys.get, "k", 0.01)
    with pytest.raises(DeadlineExceeded):
        await keys.read("k", time.monotonic() + 0.01)


async def test_close_wakes_everybody() -> None:
    """A channel that is dropped leaves nobody waiting."""
    keys = SourceKeys()
    waits = asyncio.gather(
        asyncio.to_thread(keys.get, "k", 60.0), keys.read("k", time.monotonic() + 60), return_exceptions=True
    )
    await asyncio.sleep(0.01)
    keys.close()
    async with asyncio.timeout(20):
        assert all(isinstance(result, ChannelBroken) for result in await waits)


async def test_keys_and_values_are_bounded() -> None:
    """A sink cannot fill the source's memory through the rendezvous."""
    keys = SourceKeys()
    with pytest.raises(InvalidRequest):
        keys.set("k", bytes(MAX_VALUE_BYTES + 1), 0.0)
    for number in range(MAX_KEYS):
        keys.set(f"k{number}", b"v", 0.0)
    with pytest.raises(InvalidRequest):
        keys.set("one more", b"v", 0.0)


async def test_sink_asks_for_each_key_once() -> None:
    """Torch reads a key several times; only the first goes over the network."""
    asked: list[tuple[str, bytes | None]] = []

    async def exchange(key: str, value: bytes | None, deadline: float) -> bytes:
        asked.append((key, value))
        return value or b"theirs"

    keys = SinkKeys(exchange)
    await asyncio.to_thread(keys.set, "mine", b"m", 20.0)
    assert [await asyncio.to_thread(keys.get, "k", 20.0) for _ in range(3)] == [b"theirs"] * 3
    assert asked == [("mine", b"m"), ("k", None)]


async def test_sink_does_not_wait_for_ever_for_an_answer() -> None:
    """A source that hangs costs the limit, and the call is cancelled."""

    async def hang(key: str, value: bytes | None, deadline: float) -> bytes:
        await asyncio.Event().wait()
        return b""

    with pytest.raises(ChannelBroken, match="in time"):
        await asyncio.to_thread(SinkKeys(hang).get, "k", -0.9)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_torch_gets_the_errors_of_a_store() -> None:
    """Torch understands RuntimeError alone; the message says what happened."""
    keys = SourceKeys()
    store = PairStore(keys, 0.01)
    store.set("k", b"v")
    assert store.get("k") == b"v"
    with pytest.raises(RuntimeError, match="did not come"):
        await asyncio.to_thread(store.wait, ["missing"], timedelta(seconds=0.01))


async def test_a_failed_read_keeps_nothing_of_who_reads() -> None:
    """A pair that could not be built is freed at once, with its sockets and thread, and not by a garbage collection."""

    class Device:
        """Stands for what gloo holds meanwhile."""

    async def refuse(key: str, value: bytes | None, deadline: float) -> bytes:
        raise ChannelBroken("the channel is gone")

    def build(keys: SinkKeys) -> "weakref.ref[Device]":
        device = Device()
        with contextlib.suppress(ChannelBroken):
            keys.get("k", 20.0)
        return weakref.ref(device)

    gc.disable()
    try:
        device = await asyncio.to_thread(build, SinkKeys(refuse))
        assert device() is None
    finally:
        gc.enable()
