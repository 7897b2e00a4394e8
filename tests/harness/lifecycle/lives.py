"""Source, sink, frontend and network of the model, and what can happen to them next."""

from collections.abc import Callable
from functools import partial

from services.common.errors import BatonError, PeerUnreachable
from services.common.types import ChoiceTokens
from services.frontend.recovery import Recovery
from services.frontend.retry_budget import RetryBudget
from tests.harness.lifecycle.attempt import Attempt, Fetch, Message, Request
from tests.harness.lifecycle.sink import Sink, Write
from tests.harness.lifecycle.source import LEASE_S, Read, Source

# The first is sent as one message; the others share prefixes, so that blocks are shared, and do not all fit at once.
PROMPTS = ((7, 8), (1, 2, 3, 4, 5), (1, 2, 3, 9, 9, 9), (1, 2, 3, 4, 5, 6))
PREFILL, DECODE = "prefill", "decode"
Events = dict[str, Callable[[], None]]


class Lives:
    """Plays events by name: `progress` is what goes on by itself, `disturbances` are what the world does."""

    def __init__(self, source: type[Source] = Source, sink: type[Sink] = Sink) -> None:
        self.now = 0.0
        self._source, self._sink = source, sink
        self.source, self.sink = source(), sink()
        self.requests: list[Request] = []
        self.network: list[Message] = []
        self.incarnation = 0
        self._budget = RetryBudget(1.0, 10.0)
        self._num_attempts = 0

    def progress(self) -> Events:
        """Each goes on where it can; of messages of one name the first one."""
        events: Events = {}
        writing = {f"chunk {write.fetch.name}" for write in self.sink.writes}
        for message in self.network:
            if message.name not in writing:
                events.setdefault(f"deliver {message.name}", partial(self._deliver, message))
        if self.source.has_work:
            events["prefill"] = self._prefill
        if self.sink.has_work:
            events["decode"] = self._decode
        for attempt in self.sink.looking.values():
            events[f"look {attempt.name}"] = partial(self._try, attempt, partial(self._look, attempt))
        for read in self.source.reads:
            events.setdefault(f"sent {read.fetch.name}", partial(self._sent, read))
        for write in self.sink.writes:
            events[f"wrote {write.fetch.name}"] = partial(self._wrote, write)
        for fetch in self.sink.fetches.values():
            events |= self._fetching(fetch)
        return events

    def _fetching(self, fetch: Fetch) -> Events:
        name, ticket = fetch.attempt.name, self.source.find(fetch.attempt.name, self.now)
        if self.sink.is_complete(fetch):
            if ticket is None or ticket.lease_end is not None:
                return {f"join {name}": partial(self._try, fetch.attempt, partial(self._join, fetch))}
        elif ticket is None:
            return {f"refuse {name}": partial(self._fail, fetch.attempt, PeerUnreachable("the ticket is gone"))}
        elif self.source.has_more(fetch, self.now):
            return {f"read {fetch.name}": partial(self.source.begin_read, fetch)}
        return {}

    def disturbances(self) -> Events:
        """Clients come and go, time passes, messages are lost, channels break, processes die."""
        events: Events = {"wait": self._wait, "die source": self._die_source, "die sink": self._die_sink}
        if len(self.requests) < len(PROMPTS):
            events["ask"] = self._ask
        for request in self.requests:
            if not request.ends:
                events[f"cancel {request.name}"] = partial(self.end, request, "CANCELLED")
        for message in self.network:
            if message.name.startswith("release"):
                events[f"lose {message.name}"] = partial(self.network.remove, message)
        for fetch in self.sink.fetches.values():
            events[f"break {fetch.name}"] = partial(self.refetch, fetch)
        return events

    def play(self, name: str) -> None:
        """Lets one event happen, which must be possible now."""
        events = self.progress() | self.disturbances()
        assert name in events, f"{name!r} cannot happen; what can: {sorted(events)}"
        events[name]()

    def _post(self, name: str, to: str, arrive: Callable[[], None]) -> None:
        self.network.append(Message(name, to, arrive))

    def _deliver(self, message: Message) -> None:
        self.network.remove(message)
        message.arrive()

    def _ask(self) -> None:
        number = len(self.requests)
        self._budget.began()
        request = Request(f"r{number}", PROMPTS[number], Recovery(max_moves=2, budget=self._budget))
        self.requests.append(request)
        self._begin(request)

    def _begin(self, request: Request) -> None:
        self._num_attempts += 1
        name = f"{request.name}.{request.recovery.moves}"
        emitted = request.merge.emitted if request.merge.has_begun else {}
        calls = {DECODE} if emitted else {PREFILL, DECODE}
        attempt = Attempt(request, self._num_attempts, name, self.incarnation, emitted, calls)
        request.attempt = attempt
        if not emitted:
            self._post(f"prefill call {name}", "source", lambda: self.source.submit(attempt))
        self._post(f"decode call {name}", "sink", lambda: self.sink.take(attempt))

    def _abandon(self, attempt: Attempt) -> None:
        if PREFILL in attempt.open_calls:
            self._post(f"prefill call {attempt.name}", "source", lambda: self.source.withdraw(attempt, self.now))
        if DECODE in attempt.open_calls:
            self._post(f"decode call {attempt.name}", "sink", lambda: self._drop(attempt))
        attempt.open_calls.clear()

    def end(self, request: Request, status: str) -> None:
        """The client gets its status."""
        request.ends.append(status)
        self._budget.ended(self.now)
        if request.attempt is not None:
            self._abandon(request.attempt)

    def _answer(self, attempt: Attempt, call: str, said: ChoiceTokens | BatonError) -> None:
        self._post(f"{call} answer {attempt.name}", "frontend", lambda: self._hear(attempt, call, said))

    def _hear(self, attempt: Attempt, call: str, said: ChoiceTokens | BatonError) -> None:
        request = attempt.request
        if self.is_over(attempt):
            return
        if isinstance(said, BatonError):
            attempt.open_calls.discard(call)
            self._recover(attempt, said)
            return
        if call == PREFILL or said.finish is not None:
            attempt.open_calls.discard(call)
        self.tell(request, said)
        if request.merge.is_finished:
            self.end(request, "OK")

    def is_over(self, attempt: Attempt) -> bool:
        """Whether the frontend does not listen to an attempt's calls any more."""
        return bool(attempt.request.ends) or attempt is not attempt.request.attempt

    def tell(self, request: Request, said: ChoiceTokens) -> None:
        """The client gets what is new."""
        for fresh in request.merge.add([said]):
            request.answer += [token.id for token in fresh.tokens]

    def _recover(self, attempt: Attempt, error: BatonError) -> None:
        request = attempt.request
        try:
            request.recovery.move(error, {"source", "sink"}, self.now)
        except BatonError as last:
            self.end(request, last.code.value)
            return
        self._abandon(attempt)
        self._begin(request)

    def _prefill(self) -> None:
        for attempt, first in self.source.step(self.now):
            self._answer(attempt, PREFILL, first)

    def _decode(self) -> None:
        fetches, reported = self.sink.step()
        for fetch in fetches:
            self.source.sending[fetch] = fetch.next_token
        for attempt, said in reported:
            self._answer(attempt, DECODE, said)

    def _try(self, attempt: Attempt, work: Callable[[], None]) -> None:
        try:
            work()
        except BatonError as error:
            self._fail(attempt, error)

    def _look(self, attempt: Attempt) -> None:
        if attempt.incarnation != self.incarnation:
            raise PeerUnreachable("the source was started again")
        self.sink.look(attempt, self.source, self.now)

    def _sent(self, read: Read) -> None:
        cells = self.source.end_read(read, self.now)
        self._post(f"chunk {read.fetch.name}", "sink", lambda: self._arrived(read.fetch, read.start, cells))

    def _arrived(self, fetch: Fetch, start: int, cells: list[int]) -> None:
        if not self.sink.begin_write(fetch, start, cells):
            self.refetch(fetch)

    def _wrote(self, write: Write) -> None:
        self.sink.end_write(write)
        key = write.fetch.attempt.key
        if write.fetch.is_fenced and key in self.sink.attempts:
            self.fetch_again(write.fetch)

    def refetch(self, fetch: Fetch) -> None:
        """The channel broke: nothing more of this fetch is taken; what is missing is asked for once nothing writes."""
        fetch.is_fenced = True
        self.source.sending.pop(fetch, None)
        if not self.sink.is_writing(fetch):
            self.fetch_again(fetch)

    def fetch_again(self, fetch: Fetch) -> None:
        """Asks for what is missing."""
        again = self.sink.fetch(self.sink.loading[fetch.attempt.key], fetch.next_token)
        self.source.sending[again] = again.next_token

    def _join(self, fetch: Fetch) -> None:
        ticket = self.source.find(fetch.attempt.name, self.now)
        self.sink.join(fetch, self.source, self.now)
        self.source.sending.pop(fetch, None)
        for first in ticket.first_tokens if ticket is not None else ():
            self._answer(fetch.attempt, DECODE, first)
        self._give_back(fetch.attempt)

    def _fail(self, attempt: Attempt, error: BatonError) -> None:
        self._drop(attempt)
        self._answer(attempt, DECODE, error)

    def _drop(self, attempt: Attempt) -> None:
        if self.sink.drop(attempt) and not attempt.emitted:
            self.source.sending = {f: at for f, at in self.source.sending.items() if f.attempt is not attempt}
            self._give_back(attempt)

    def _give_back(self, attempt: Attempt) -> None:
        self._post(f"release {attempt.name}", "source", lambda: self.source.release(attempt, self.now))

    def _wait(self) -> None:
        self.now += LEASE_S * 0.6
        self.source.expire(self.now)

    def _die_source(self) -> None:
        self.source = self._source()
        self.incarnation += 1
        self._cut("source", PREFILL)
        for attempt in self.sink.needing_kv():
            self._fail(attempt, PeerUnreachable("the source has died"))

    def _die_sink(self) -> None:
        self.source.lose_sink()
        self.sink = self._sink()
        self._cut("sink", DECODE)

    def _cut(self, side: str, call: str) -> None:
        self.network = [message for message in self.network if message.to != side]
        for request in self.requests:
            if request.attempt is not None and call in request.attempt.open_calls:
                self._answer(request.attempt, call, PeerUnreachable(f"the {side} has died"))
