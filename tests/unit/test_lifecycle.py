"""Requests under every order of steps, losses and deaths: one owner for every block, one end, right tokens."""

from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from services.common.types import ChoiceTokens
from services.kvtransfer.tickets import Ticket
from tests.harness.lifecycle.attempt import Attempt, Fetch, Request
from tests.harness.lifecycle.lives import Lives
from tests.harness.lifecycle.rules import check, settle
from tests.harness.lifecycle.sink import Sink
from tests.harness.lifecycle.source import Source

# One number chooses one event; one in sixteen is a disturbance.
CHOICES = st.lists(st.integers(0, 1599), min_size=40, max_size=120)


def play_chosen(lives: Lives, choices: list[int]) -> None:
    """Lets happen what the numbers choose among all that can happen, then lets it settle; checks each time."""
    lives.play("ask")
    for number in choices:
        progress = lives.progress()
        events = lives.disturbances() if number % 16 == 15 or not progress else progress
        lives.play(sorted(events)[number // 16 % len(events)])
        check(lives)
    settle(lives)


def play_named(lives: Lives, events: list[str]) -> None:
    """Lets these events happen, then lets it settle; checks each time."""
    for name in events:
        lives.play(name)
        check(lives)
    settle(lives)


@settings(max_examples=250)
@given(CHOICES)
def test_whatever_happens_every_rule_holds(choices: list[int]):
    """In any order of events no block has two owners, each request ends once with right tokens, and nothing is left."""
    play_chosen(Lives(), choices)


class FreesUnderReaders(Source):
    """Broken: a ticket's blocks are free once it is given back, although a read is in progress."""

    def release(self, attempt: Attempt, now: float) -> None:
        super().release(attempt, now)
        if attempt.name in self.held:
            self.free(attempt.name)


class ForgetsReaders(Source):
    """Broken: reads that are in progress for a sink are not ended when it dies."""

    def lose_sink(self) -> None:
        super().lose_sink()
        self.reads.clear()


class KeepsLeases(Source):
    """Broken: blocks come back only where a sink gives them back, which a dead one does not."""

    def expire(self, now: float) -> None:
        del now


class ReadsAhead(Source):
    """Broken: positions are sent that are not computed yet."""

    def readable(self, ticket: Ticket) -> int:
        return ticket.num_tokens


class FreesUnderWriters(Sink):
    """Broken: blocks are free once a call has ended, although a write into them is in progress."""

    def is_writing(self, fetch: Fetch) -> bool:
        del fetch
        return False


class TakesLateMessages(Sink):
    """Broken: a message of a fetch that is over is written as well."""

    def takes(self, fetch: Fetch) -> bool:
        del fetch
        return True


class TrustsTheCopy(Sink):
    """Broken: whether the lease has held until the last byte was copied is not asked."""

    def revalidate(self, fetch: Fetch, source: Source, now: float) -> None:
        del fetch, source, now


class JoinsEarly(Sink):
    """Broken: decoding begins before all KV has come."""

    def is_complete(self, fetch: Fetch) -> bool:
        return not fetch.is_fenced and fetch.next_token > 0


class FetchesAtOnce(Lives):
    """Broken: after a broken channel KV is asked for again while the old fetch still writes."""

    def refetch(self, fetch: Fetch) -> None:
        super().refetch(fetch)
        if self.sink.is_writing(fetch):
            self.fetch_again(fetch)


class RepeatsTokens(Lives):
    """Broken: what both calls report is told twice."""

    def tell(self, request: Request, said: ChoiceTokens) -> None:
        request.merge.add([said])
        request.answer += [token.id for token in said.tokens]


class HearsTheLate(Lives):
    """Broken: what the calls of an attempt that is over say is heard as well."""

    def is_over(self, attempt: Attempt) -> bool:
        del attempt
        return False


@dataclass(frozen=True)
class Scenario:
    """Events that break a rule where `source`, `sink` or `lives` is broken; `rule` is how the finding reads."""

    events: list[str]
    rule: str
    source: type[Source] = Source
    sink: type[Sink] = Sink
    lives: type[Lives] = Lives


BEGUN = ["ask", "deliver prefill call r0.0", "deliver decode call r0.0", "prefill", "look r0.0", "decode"]
READING = [*BEGUN, "read r0.0/1"]
SENT = [*READING, "sent r0.0/1"]
WRITING = [*SENT, "deliver chunk r0.0/1"]
WITHDRAWN = ["cancel r0", "deliver decode call r0.0"]
AHEAD = ["deliver prefill call r1.0", "deliver decode call r1.0", "prefill", "look r1.0", "decode"]
RACED = ["deliver prefill answer r0.0", "deliver decode answer r0.0"]

SCENARIOS = [
    Scenario([*READING, *WITHDRAWN, "deliver release r0.0"], "free under a reader", source=FreesUnderReaders),
    Scenario([*READING, "die sink"], "something is left", source=ForgetsReaders),
    Scenario([*BEGUN, "die sink"], "something is left", source=KeepsLeases),
    Scenario([*WRITING, *WITHDRAWN], "free under a writer", sink=FreesUnderWriters),
    Scenario([*SENT, *WITHDRAWN, "deliver chunk r0.0/1"], "free under a writer", sink=TakesLateMessages),
    Scenario([*WRITING, "wrote r0.0/1", "wait", "wait", "join r0.0"], "whose lease had ended", sink=TrustsTheCopy),
    Scenario(
        [*WRITING, "break r0.0/1", "read r0.0/2", "sent r0.0/2", "deliver chunk r0.0/2"],
        "two messages are written into one block",
        lives=FetchesAtOnce,
    ),
    Scenario(["ask", "ask", *AHEAD, *["read r1.0/1"] * 3, *["sent r1.0/1"] * 3], "wrong token", source=ReadsAhead),
    Scenario(["ask", "die source", "cancel r0", "deliver prefill answer r0.0"], "ended twice", lives=HearsTheLate),
    Scenario([*WRITING, "wrote r0.0/1", "join r0.0", *RACED], "wrong token", lives=RepeatsTokens),
]
SEARCHED = [
    Scenario([], "free under a reader", source=FreesUnderReaders),
    Scenario([], "something is left", source=KeepsLeases),
    Scenario([], "wrong token", sink=JoinsEarly),
    Scenario([], "wrong token", lives=RepeatsTokens),
]


def what_is_broken(scenario: Scenario) -> str:
    """Names a case by the part that is broken."""
    parts = {scenario.source, scenario.sink, scenario.lives} - {Source, Sink, Lives}
    return parts.pop().__name__


@pytest.mark.parametrize("scenario", SCENARIOS, ids=what_is_broken)
def test_each_way_to_break_a_rule_is_found(scenario: Scenario):
    """The shortest events that do harm where one part is broken break the rule that forbids it."""
    with pytest.raises(AssertionError, match=scenario.rule):
        play_named(scenario.lives(scenario.source, scenario.sink), scenario.events)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=what_is_broken)
def test_the_same_events_do_no_harm_where_nothing_is_broken(scenario: Scenario):
    """The control: it is the broken part that is found; what it alone made possible does not happen."""
    lives = Lives()
    for name in scenario.events:
        if name in lives.progress() | lives.disturbances():
            lives.play(name)
            check(lives)
    settle(lives)


@pytest.mark.parametrize("scenario", SEARCHED, ids=what_is_broken)
def test_the_search_finds_what_is_broken(scenario: Scenario):
    """The search for orders of events finds these by itself, so it goes where harm can be done."""

    @settings(max_examples=60, phases=[Phase.generate], report_multiple_bugs=False, database=None)
    @given(CHOICES)
    def search(choices: list[int]) -> None:
        play_chosen(scenario.lives(scenario.source, scenario.sink), choices)

    with pytest.raises(AssertionError, match=scenario.rule):
        search()
