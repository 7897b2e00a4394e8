"""The model's prefill worker: runs prompts, keeps their blocks under tickets, reads them out for fetches."""

from dataclasses import dataclass

from services.common.errors import BatonError, Cancelled
from services.common.types import ChoiceTokens, StageTimes
from services.engine.blocks import BlockPool
from services.kvtransfer.tickets import Ticket, TicketTable
from services.prefill.prompt import Prompt
from services.prefill.scheduler import PrefillScheduler
from tests.harness.lifecycle.attempt import SIZE, Attempt, Fetch, Memory, compute, next_token, part, read

BLOCKS = 6
LEASE_S = 5.0
MESSAGE = 2


@dataclass(eq=False)
class Read:
    """A message that is being copied out of the blocks."""

    fetch: Fetch
    ticket: Ticket
    start: int
    end: int


class Source:
    """One process; each method is an event. `now` is in seconds."""

    def __init__(self) -> None:
        self.pool = BlockPool(BLOCKS, SIZE)
        self.scheduler = PrefillScheduler(self.pool, max_num_seqs=2, max_num_batched_tokens=3)
        self.table = TicketTable(lease_s=LEASE_S, tombstone_s=4 * LEASE_S, max_tombstones=64)
        self.memory: Memory = {}
        self.attempts: dict[int, Attempt] = {}
        self.held: dict[str, Prompt] = {}
        self.sending: dict[Fetch, int] = {}
        self.reads: list[Read] = []

    @property
    def has_work(self) -> bool:
        """True where a prompt waits or runs."""
        stats = self.scheduler.stats()
        return stats.waiting + stats.running > 0

    def submit(self, attempt: Attempt) -> None:
        """The prefill call comes in."""
        self.attempts[attempt.key] = attempt
        self.scheduler.submit(Prompt(key=attempt.key, token_ids=attempt.request.prompt, rank=attempt.key))

    def step(self, now: float) -> list[tuple[Attempt, ChoiceTokens]]:
        """Computes one step; returns first tokens."""
        done: list[tuple[Attempt, ChoiceTokens]] = []
        for chunk in self.scheduler.plan():
            prompt, attempt = chunk.prompt, self.attempts[chunk.prompt.key]
            if attempt.name not in self.held:
                self.held[attempt.name] = prompt
                self.table.open(attempt.name, attempt.name, prompt.block_ids, len(prompt.token_ids), now)
                self.table.advance(attempt.name, prompt.computed)
            compute(self.memory, prompt.block_ids, chunk.start, list(prompt.token_ids[chunk.start : chunk.end]))
            self.scheduler.commit(chunk)
            self.table.advance(attempt.name, chunk.end)
            if chunk.is_last:
                first = part(next_token(read(self.memory, prompt.block_ids, 0, chunk.end)), 0)
                self.table.finish(attempt.name, (first,), StageTimes(), prompt.cached, now)
                done.append((self.attempts.pop(prompt.key), first))
        self.collect()
        return done

    def withdraw(self, attempt: Attempt, now: float) -> None:
        """The prefill call is cancelled; one whose prompt is done is over already."""
        if self.attempts.pop(attempt.key, None) is not None:
            self.scheduler.stop(attempt.key)
            self.table.fail(attempt.name, Cancelled("withdrawn"), now)
            self.collect()

    def release(self, attempt: Attempt, now: float) -> None:
        """The sink gives the ticket back."""
        self.table.release(attempt.name, now)
        self.collect()

    def expire(self, now: float) -> None:
        """Leases end."""
        self.table.expire(now)
        self.collect()

    def collect(self) -> None:
        """Frees what nobody may read any more."""
        for name in self.table.take_closed():
            self.free(name)

    def free(self, name: str) -> None:
        """Gives a ticket's blocks back."""
        prompt = self.held.pop(name)
        self.attempts.pop(prompt.key, None)
        self.scheduler.stop(prompt.key)
        self.scheduler.release(prompt.key)

    def readable(self, ticket: Ticket) -> int:
        """Positions below this one are final."""
        return ticket.computed_tokens

    def is_live(self, name: str, now: float) -> bool:
        """Whether a ticket's lease runs, or will."""
        try:
            return self.table.find(name, now) is not None
        except BatonError:
            return False

    def find(self, name: str, now: float) -> Ticket | None:
        """The live ticket, if there is one."""
        return self.table.find(name, now) if self.is_live(name, now) else None

    def has_more(self, fetch: Fetch, now: float) -> bool:
        """Whether something can be read for a fetch."""
        ticket = self.find(fetch.attempt.name, now)
        return ticket is not None and fetch in self.sending and self.sending[fetch] < self.readable(ticket)

    def begin_read(self, fetch: Fetch) -> None:
        """Pins the blocks for the next message."""
        ticket = self.table.begin_read(fetch.attempt.name)
        assert ticket is not None
        start = self.sending[fetch]
        self.sending[fetch] = min(self.readable(ticket), start + MESSAGE)
        self.reads.append(Read(fetch, ticket, start, self.sending[fetch]))

    def end_read(self, which: Read, now: float) -> list[int]:
        """The message is copied: what lies in the blocks now is what travels."""
        self.reads.remove(which)
        cells = read(self.memory, which.ticket.block_ids, which.start, which.end)
        self.table.end_read(which.ticket, now)
        self.collect()
        return cells

    def lose_sink(self) -> None:
        """The sink's process has ended: nothing more is begun for it; what is being copied ends by itself."""
        self.sending.clear()
