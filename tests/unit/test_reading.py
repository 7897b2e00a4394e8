"""What a caller reads of one request, whichever of the two ways its parts come over and in whichever order."""

import asyncio

import pytest

from services.common.errors import BatonError, PeerError, PeerUnreachable, SlowReader
from services.common.types import ChoiceTokens, DecodeEvent, DecodeSummary, StageTimes, Token, Usage
from services.decode.reading import MAX_UNREAD_TOKENS, Reading
from tests.harness.virtual_time import VirtualClock, run_virtually

SUMMARY = DecodeSummary(
    usage=Usage(), stages=StageTimes(), prefilled_tokens=0, preemptions=0, received_bytes=0, worker_id="w"
)


def part(first: int, count: int = 1) -> ChoiceTokens:
    """Tokens whose ids are their indexes."""
    return ChoiceTokens(0, tuple(Token(index, index) for index in range(first, first + count)))


def last(first: int, watched: int) -> DecodeEvent:
    """The last event."""
    return DecodeEvent(choices=(part(first),), summary=SUMMARY, watched_tokens=watched)


async def test_the_last_event_waits_for_the_tokens_before_it() -> None:
    """They come over another call, maybe later."""
    reading = Reading("w")
    reading.called(last(2, watched=2))
    reading.end()
    waiting = asyncio.ensure_future(reading.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    reading.watched((part(0, 2),))
    assert await waiting == DecodeEvent(choices=(part(0, 3),), summary=SUMMARY)
    assert await reading.take() is None


def test_tokens_that_never_come_end_the_request() -> None:
    """A worker that claims more than it sent holds nobody up for long."""

    async def read(_: VirtualClock) -> None:
        reading = Reading("w")
        reading.called(last(2, watched=9))
        reading.end()
        reading.watched((part(0, 2),))
        assert await reading.take() == DecodeEvent(choices=(part(0, 2),))
        with pytest.raises(PeerError):
            await reading.take()

    run_virtually(read)


async def test_what_came_before_a_failure_is_read_first() -> None:
    """The first failure counts."""
    reading = Reading("w")
    reading.watched((part(0),))
    reading.fail(PeerUnreachable("first"))
    reading.fail(PeerError("second"))
    reading.end()
    assert await reading.take() == DecodeEvent(choices=(part(0),))
    with pytest.raises(BatonError, match="first"):
        await reading.take()


async def test_nothing_fails_an_answer_that_is_whole() -> None:
    """The watch may end before the request's own call does."""
    reading = Reading("w")
    reading.called(last(0, watched=0))
    assert await reading.take() == DecodeEvent(choices=(part(0),), summary=SUMMARY)
    reading.fail(PeerUnreachable("late"))
    reading.end()
    assert await reading.take() is None


async def test_a_slow_reader_loses_its_request() -> None:
    """What is unread is bounded."""
    reading = Reading("w")
    reading.watched((part(0, MAX_UNREAD_TOKENS),))
    reading.watched((part(MAX_UNREAD_TOKENS),))
    with pytest.raises(SlowReader):
        await reading.take()


@pytest.mark.parametrize("is_last_first", [False, True])
async def test_no_answer_with_a_gap_is_whole(is_last_first: bool) -> None:
    """What was too much is lost, so a last event counts no more, whether it came before or after."""
    reading = Reading("w")
    reading.watched((part(0, MAX_UNREAD_TOKENS),))
    if is_last_first:
        reading.called(last(MAX_UNREAD_TOKENS + 1, watched=MAX_UNREAD_TOKENS + 1))
    reading.watched((part(MAX_UNREAD_TOKENS),))
    if not is_last_first:
        reading.called(last(MAX_UNREAD_TOKENS + 1, watched=MAX_UNREAD_TOKENS + 1))
    reading.watched((part(MAX_UNREAD_TOKENS + 2),))
    reading.end()
    for _ in range(2):
        with pytest.raises(SlowReader):
            await reading.take()
    reading.close()


async def test_tokens_over_the_call_wait_for_the_reader() -> None:
    """Where there is no watch, a slow reader holds the worker back."""
    reading = Reading("w")
    await reading.taken()
    reading.called(DecodeEvent(choices=(part(0),)))
    waiting = asyncio.ensure_future(reading.taken())
    await asyncio.sleep(0)
    assert not waiting.done()
    await reading.take()
    await waiting
