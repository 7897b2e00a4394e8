"""Blocks change hands while messages of the fetches that had them are still under way, in any order."""

import asyncio
import threading
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.kvtransfer.events import ChunkHeader
from services.kvtransfer.landing import Landing
from services.kvtransfer.staging import token_bytes
from tests.harness.fake_kv import LAYOUT, FakeKv

BLOCKS = (3, 1, 2)
TOKENS = 12
MESSAGE = 2
WAIT_S = 10


class OwnedKv(FakeKv):
    """Knows which fetch the blocks belong to; a write stops in its middle for as long as it is `held`."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = 0
        self.trespasses: list[tuple[int, int]] = []
        self.is_held = False
        self.in_write = threading.Event()
        self.go_on = threading.Event()

    def writer(self, fetch: int) -> "FetchKv":
        """The blocks as one fetch writes them."""
        return FetchKv(self, fetch)


class FetchKv:
    """A `KvBlocks` of one fetch, which notes writes into blocks of another one, at their start and at their end."""

    def __init__(self, kv: OwnedKv, fetch: int) -> None:
        self.layout = kv.layout
        self._kv = kv
        self._fetch = fetch

    def read(self, block_ids: Sequence[int], start: int, end: int, out: Tensor) -> None:
        raise AssertionError("a sink reads nothing")

    def write(self, block_ids: Sequence[int], start: int, end: int, data: Tensor) -> None:
        self._note()
        if self._kv.is_held:
            self._kv.in_write.set()
            assert self._kv.go_on.wait(WAIT_S)
        self._kv.write(block_ids, start, end, data)
        self._note()

    def _note(self) -> None:
        if self._kv.owner != self._fetch:
            self._kv.trespasses.append((self._fetch, self._kv.owner))


class Race:
    """Fetches that have the same blocks one after the other; the next one gets them once the fence has returned."""

    def __init__(self) -> None:
        self.kv = OwnedKv()
        self.landings = [self._landing(0)]
        self.writer: threading.Thread | None = None
        self.fencing: asyncio.Task[None] | None = None

    def _landing(self, fetch: int) -> Landing:
        return Landing(str(fetch), self.kv.writer(fetch), BLOCKS, 0, TOKENS, checksum=False)

    def deliver(self, which: int, *, is_held: bool) -> None:
        """The channel's thread takes a message of any fetch there ever was; one message at a time."""
        if self.writer is not None:
            return
        landing = self.landings[which % len(self.landings)]
        start = min(landing.next_token, TOKENS - MESSAGE)
        data = torch.zeros(MESSAGE * token_bytes(LAYOUT), dtype=torch.uint8)
        header = ChunkHeader(
            sequence=1, fetch_id="f", epoch=1, start_token=start, end_token=start + MESSAGE, num_bytes=data.numel()
        )
        self.kv.is_held = is_held
        self.kv.in_write.clear()
        self.kv.go_on.clear()
        self.writer = threading.Thread(target=landing.land, args=(header, data, LAYOUT), daemon=True)
        self.writer.start()
        while self.writer.is_alive() and not self.kv.in_write.wait(0.001):
            pass
        if not self.writer.is_alive():
            self.writer = None

    def go_on(self) -> None:
        """The write that is held ends."""
        self.kv.go_on.set()
        if self.writer is not None:
            self.writer.join(WAIT_S)
            self.writer = None

    async def withdraw(self, *, is_cancelled: bool) -> None:
        """The fetch that has the blocks ends; whoever waits for the fence may be cancelled meanwhile."""
        if self.fencing is None:
            self.fencing = asyncio.create_task(self._pass_on())
        await asyncio.sleep(0)
        if is_cancelled:
            self.fencing.cancel()
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Lets the fence end where it can."""
        if self.fencing is not None and self.writer is None:
            await asyncio.wait({self.fencing}, timeout=WAIT_S)
            assert self.fencing.done()
            self.fencing = None

    async def _pass_on(self) -> None:
        try:
            await self.landings[-1].fence()
        finally:
            self.landings.append(self._landing(len(self.landings)))
            self.kv.owner = len(self.landings) - 1


Action = st.one_of(
    st.tuples(st.just("deliver"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("go on"), st.just(0), st.just(False)),
    st.tuples(st.just("withdraw"), st.just(0), st.booleans()),
)


async def play(actions: Sequence[tuple[str, int, bool]]) -> Race:
    """Runs the actions, ends what is under way."""
    race = Race()
    for what, which, flag in actions:
        if what == "deliver":
            race.deliver(which, is_held=flag)
        elif what == "go on":
            race.go_on()
        else:
            await race.withdraw(is_cancelled=flag)
        await race.settle()
    race.go_on()
    await race.settle()
    return race


@settings(max_examples=120, deadline=None)
@given(st.lists(Action, max_size=14))
def test_only_the_owner_of_the_blocks_ever_writes(actions: list[tuple[str, int, bool]]) -> None:
    """Whatever comes late, is held in the middle or is cancelled: no write begins or ends in another fetch's blocks."""
    race = asyncio.run(play(actions))
    assert race.kv.trespasses == []


def test_the_model_sees_a_missing_fence(monkeypatch: object) -> None:
    """The negative control: blocks that are passed on without a fence are written by the fetch that had them."""

    async def no_fence(self: Landing) -> None:
        del self

    monkeypatch.setattr(Landing, "fence", no_fence)  # type: ignore[attr-defined]
    race = asyncio.run(play([("deliver", 0, True), ("withdraw", 0, False), ("go on", 0, False), ("deliver", 0, False)]))
    assert race.kv.trespasses
