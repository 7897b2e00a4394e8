"""What is kept of an answer for a client that may come back: all that it may lack, and never more than the bound."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Cancelled, NotFound
from services.common.types import Token
from services.frontend.kept_answer import KeptAnswer, Send
from services.frontend.request import Delta, Output

LIMIT = 6


def _output(number: int, size: int) -> Output:
    tokens = tuple(Token(number, place) for place in range(size))
    return Output(request_id="r", deltas=(Delta(choice=0, text="", tokens=tokens),))


class _Reader:
    """Takes a number of messages and then goes away."""

    def __init__(self, most: int) -> None:
        self.got: list[Output] = []
        self._most = most

    async def send(self, output: Output) -> None:
        if len(self.got) == self._most:
            raise ConnectionResetError
        self.got.append(output)


async def _settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=15),
    visits=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=8),
)
def test_readers_that_come_and_go_see_one_answer(sizes: list[int], visits: list[tuple[int, int]]):
    """However often the reader goes, and however far back it starts again, it gets exactly what it lacks, in order."""
    outputs = [_output(number, size) for number, size in enumerate(sizes)]

    async def scenario() -> None:
        produced: list[Output] = []

        async def run(put: Send) -> None:
            for output in outputs:
                await put(output)
                produced.append(output)

        answer = KeptAnswer(LIMIT)
        task = answer.start(run, "answer")
        arrived: list[Output] = []
        for most, back in visits:
            reader = _Reader(most)
            start = max(0, len(arrived) - back)
            try:
                await asyncio.wait_for(_visit(answer, start, reader), 20)
            except NotFound:
                continue
            arrived = [*arrived[:start], *reader.got]
            await _settle()
            taken = start + len(reader.got)  # and perhaps one more, which the reader did not get
            ahead = sum(max(1, len(output.deltas[0].tokens)) for output in produced[taken + 1 :])
            assert ahead < LIMIT + 4, "produced further ahead than the bound and one message"
        assert arrived == outputs[: len(arrived)]
        last = _Reader(len(outputs) + 1)
        await asyncio.wait_for(answer.forward(len(arrived), last.send), 20)
        assert [*arrived, *last.got] == outputs
        assert task.done()

    asyncio.run(scenario())


async def _visit(answer: KeptAnswer, start: int, reader: _Reader) -> None:
    """Reads until the reader goes away, or everything that is there has been read."""
    reading = asyncio.create_task(answer.forward(start, reader.send))
    await _settle()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionResetError):
        await reading


async def test_nobody_reads_means_a_bounded_answer() -> None:
    """Without a reader production stops at the bound, and goes on when one comes."""
    produced: list[int] = []

    async def run(put: Send) -> None:
        for number in range(100):
            await put(_output(number, 1))
            produced.append(number)

    answer = KeptAnswer(LIMIT)
    answer.start(run, "answer")
    await _settle()
    assert len(produced) == LIMIT
    reader = _Reader(1000)
    await asyncio.wait_for(answer.forward(0, reader.send), 20)
    assert len(reader.got) == 100
    with pytest.raises(NotFound, match="are kept"):
        await answer.forward(0, reader.send)


async def test_stopped_answer_tells_its_reader() -> None:
    """A reader of a request that is withdrawn gets a typed end, and the producer is cancelled."""
    ended = asyncio.Event()

    async def run(put: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    answer = KeptAnswer(LIMIT)
    answer.start(run, "answer")
    reading = asyncio.create_task(answer.forward(0, _Reader(1).send))
    await _settle()
    answer.stop()
    with pytest.raises(Cancelled, match="withdrawn"):
        await asyncio.wait_for(reading, 20)
    assert ended.is_set()
    assert not answer.is_running
