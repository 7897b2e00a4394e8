"""Tokens of many requests on one call: nothing lost, nothing mixed up, bounded, and over when the call is."""

import asyncio

import pytest

from services.common.errors import InvalidRequest, Overloaded, PeerUnreachable
from services.common.types import ChoiceTokens, Token
from services.decode.messages import Progress
from services.decode.place import Place
from services.decode.stream import TokenStream
from services.decode.token_watch import MAX_UNREAD_REQUESTS, MAX_WATCHES, TokenWatches


def part(first: int, count: int = 1, choice: int = 0) -> ChoiceTokens:
    """Tokens whose ids are their indexes."""
    return ChoiceTokens(choice, tuple(Token(index, index) for index in range(first, first + count)))


@pytest.fixture
async def watches() -> TokenWatches:
    """Of at most four unread tokens a request."""
    return TokenWatches(max_tokens=4)


async def test_tokens_of_one_step_come_in_one_message(watches: TokenWatches) -> None:
    """By request, those of one choice joined; the last ones come with the request's own call."""
    watch = watches.open("w")
    one, two = TokenStream(9), TokenStream(9)
    with watches.joined(Place("w", 1), one), watches.joined(Place("w", 2), two):
        one.put((part(0),), None)
        two.put((part(0, choice=1),), None)
        one.put((part(1),), None)
        one.put((part(2),), Progress())
        assert await watch.take() == {1: (part(0, 2),), 2: (part(0, choice=1),)}
        assert await one.take() == (part(2),)
        assert one.diverted_tokens == 2


async def test_what_a_finished_request_left_unread_still_comes(watches: TokenWatches) -> None:
    """Its caller waits for it; what a failed one left does not."""
    watch = watches.open("w")
    done, failed = TokenStream(9), TokenStream(9)
    with watches.joined(Place("w", 1), done), watches.joined(Place("w", 2), failed):
        done.put((part(0),), None)
        done.put((), Progress())
        failed.put((part(0),), None)
    assert await watch.take() == {1: (part(0),)}


async def test_too_many_unread_tokens_end_their_request_alone(watches: TokenWatches) -> None:
    """The others go on."""
    watches.open("w")
    slow, other = TokenStream(9), TokenStream(9)
    with watches.joined(Place("w", 1), slow), watches.joined(Place("w", 2), other):
        assert slow.put((part(0, 4),), None)
        assert not slow.put((part(4),), None)
        assert isinstance(slow.error, Overloaded)
        assert other.put((part(0, 4),), None)


async def test_a_watch_that_nobody_reads_takes_no_more_requests(watches: TokenWatches) -> None:
    """What finished requests left there is bounded, too; once it is read there is room again."""
    watch = watches.open("w")
    for key in range(MAX_UNREAD_REQUESTS):
        stream = TokenStream(9)
        with watches.joined(Place("w", key), stream):
            stream.put((part(0, 4),), None)
            stream.put((), Progress())
    with pytest.raises(Overloaded, match="unread"), watches.joined(Place("w", 99), TokenStream(9)):
        pass
    assert len(await watch.take() or {}) == MAX_UNREAD_REQUESTS
    with watches.joined(Place("w", 99), TokenStream(9)):
        pass


async def test_requests_end_with_their_watch(watches: TokenWatches) -> None:
    """Nobody reads their tokens any more; who waits for the watch learns that it is over."""
    watch = watches.open("w")
    stream = TokenStream(9)
    with watches.joined(Place("w", 1), stream):
        waiting = asyncio.ensure_future(watch.take())
        await asyncio.sleep(0)
        watches.close("w")
        assert await waiting is None
        with pytest.raises(PeerUnreachable):
            await stream.take()
    assert watches.stats() == {"token_watches": 0, "watched_requests": 0}


async def test_a_watch_that_is_not_open_is_refused(watches: TokenWatches) -> None:
    """The request may go to another worker, or come back over another watch."""
    with pytest.raises(PeerUnreachable), watches.joined(Place("gone", 1), TokenStream(9)):
        pass


async def test_ids_and_keys_are_used_once(watches: TokenWatches) -> None:
    """Tokens of two requests never mix."""
    watches.open("w")
    with pytest.raises(InvalidRequest, match="watch_id"):
        watches.open("w")
    with pytest.raises(InvalidRequest, match="watch_id"):
        watches.open("")
    with watches.joined(Place("w", 1), TokenStream(9)):
        with pytest.raises(InvalidRequest, match="watch_key"), watches.joined(Place("w", 1), TokenStream(9)):
            pass
        assert watches.stats() == {"token_watches": 1, "watched_requests": 1}


async def test_the_number_of_watches_is_bounded(watches: TokenWatches) -> None:
    """One more is refused until another has ended."""
    for number in range(MAX_WATCHES):
        watches.open(str(number))
    with pytest.raises(Overloaded):
        watches.open("more")
    watches.close("0")
    watches.open("more")
