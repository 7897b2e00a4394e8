"""The model's decode worker: reserves blocks, takes KV into them, makes tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.common.types import ChoiceTokens
from services.decode.plan import Run, Share, new_runs
from services.decode.scheduler import DecodeScheduler
from services.engine.blocks import BlockPool
from tests.harness.lifecycle.attempt import OUTPUT, SIZE, Attempt, Fetch, Memory, compute, next_token, part, read, write
from tests.harness.lifecycle.source import Source

BLOCKS = 6


@dataclass(eq=False)
class Write:
    """A message that is being copied into the blocks."""

    fetch: Fetch
    start: int
    cells: list[int]

    @property
    def block_ids(self) -> list[int]:
        """Blocks that it touches."""
        return self.fetch.block_ids[self.start // SIZE : -(-(self.start + len(self.cells)) // SIZE)]


class Sink:
    """One process; each method is an event. `now` is in seconds."""

    def __init__(self) -> None:
        self.pool = BlockPool(BLOCKS, SIZE)
        self.scheduler = DecodeScheduler(self.pool, max_num_seqs=3, max_num_batched_tokens=4)
        self.memory: Memory = {}
        self.attempts: dict[int, Attempt] = {}
        self.looking: dict[int, Attempt] = {}
        self.fetches: dict[int, Fetch] = {}
        self.writes: list[Write] = []
        self._num_fetches = 0

    @property
    def loading(self) -> dict[int, Run]:
        """Runs whose KV is on its way."""
        return self.scheduler._loading

    @property
    def holders(self) -> list[Run]:
        """Runs that have blocks."""
        return [*self.scheduler._running, *self.loading.values()]

    @property
    def has_work(self) -> bool:
        """True where a run waits or runs."""
        stats = self.scheduler.stats()
        return stats.waiting + stats.running > 0

    def take(self, attempt: Attempt) -> None:
        """The decode call comes in."""
        self.attempts[attempt.key] = attempt
        if attempt.emitted:
            self._submit(attempt)
        else:
            self.looking[attempt.key] = attempt

    def look(self, attempt: Attempt, source: Source, now: float) -> None:
        """Blocks are asked for once the source has admitted the prompt.

        Raises:
            BatonError: its ticket is gone.
        """
        if source.table.find(attempt.name, now) is not None:
            self._submit(self.looking.pop(attempt.key))

    def _submit(self, attempt: Attempt) -> None:
        for run in new_runs(attempt.key, attempt.work, attempt.key):
            self.scheduler.submit(run)

    def step(self) -> tuple[list[Fetch], list[tuple[Attempt, ChoiceTokens]]]:
        """Computes one step; returns fetches to begin, and tokens."""
        plan = self.scheduler.plan()
        fetches = [self.fetch(run, run.cached) for run in plan.reserved]
        for origin, copy in plan.copies:
            for offset in range(SIZE):
                self.memory[copy, offset] = self.memory.get((origin, offset), -1)
        tokens = [reported for share in plan.shares for reported in self._settle(share)]
        return fetches, tokens

    def fetch(self, run: Run, start: int) -> Fetch:
        """A new fetch into a run's blocks."""
        self._num_fetches += 1
        attempt = self.attempts[run.key]
        self.fetches[run.key] = Fetch(self._num_fetches, attempt, list(run.block_ids), start)
        return self.fetches[run.key]

    def _settle(self, share: Share) -> Iterator[tuple[Attempt, ChoiceTokens]]:
        run = share.run
        compute(self.memory, run.block_ids, share.start, run.tokens[share.start : share.end])
        self.scheduler.commit(share)
        if not share.is_sampling:
            return
        token, index = next_token(read(self.memory, run.block_ids, 0, share.end)), len(run.tokens) - run.num_prompt
        yield self.attempts[run.key], part(token, index)
        if index == OUTPUT - 1:
            self.scheduler.finish(run)
            self.attempts.pop(run.key)
        elif run.is_forked:
            run.tokens.append(token)
        else:
            self.scheduler.fork(run, {0: token})

    def begin_write(self, fetch: Fetch, start: int, cells: list[int]) -> bool:
        """A message has come; False where the fetch has to be made anew."""
        if not self.takes(fetch):
            return True
        if start != fetch.next_token:
            return False
        self.writes.append(Write(fetch, start, cells))
        return True

    def takes(self, fetch: Fetch) -> bool:
        """Whether messages of a fetch are still wanted; others are dropped."""
        return self.fetches.get(fetch.attempt.key) is fetch and not fetch.is_fenced

    def end_write(self, which: Write) -> None:
        """The message lies in the blocks; those of a request that was dropped meanwhile are free now."""
        self.writes.remove(which)
        write(self.memory, which.fetch.block_ids, which.start, which.cells)
        which.fetch.next_token = which.start + len(which.cells)
        key = which.fetch.attempt.key
        if which.fetch.is_fenced and key not in self.attempts:
            self.scheduler.cancel(key)

    def is_writing(self, fetch: Fetch) -> bool:
        """Whether a write of the fetch is in progress."""
        return any(each.fetch is fetch for each in self.writes)

    def is_complete(self, fetch: Fetch) -> bool:
        """Whether all KV has been copied."""
        return not fetch.is_fenced and fetch.next_token == len(fetch.attempt.request.prompt)

    def join(self, fetch: Fetch, source: Source, now: float) -> None:
        """Decodes from the KV that has come, if its lease has held until the last byte was copied.

        Raises:
            BatonError: it has not.
        """
        self.revalidate(fetch, source, now)
        fetch.attempt.was_joined_late = not source.is_live(fetch.attempt.name, now)
        self.scheduler.join(fetch.attempt.key, {0: next_token(self._kv(fetch))})
        self.fetches.pop(fetch.attempt.key)

    def revalidate(self, fetch: Fetch, source: Source, now: float) -> None:
        """Asks the source whether the lease runs."""
        source.table.renew(fetch.attempt.name, now)

    def _kv(self, fetch: Fetch) -> list[int]:
        return read(self.memory, fetch.block_ids, 0, len(fetch.attempt.request.prompt))

    def drop(self, attempt: Attempt) -> bool:
        """The decode call ends; blocks under a write stay until that ends. False where the call was over."""
        if self.attempts.pop(attempt.key, None) is None:
            return False
        self.looking.pop(attempt.key, None)
        fetch = self.fetches.pop(attempt.key, None)
        if fetch is not None:
            fetch.is_fenced = True
        if fetch is None or not self.is_writing(fetch):
            self.scheduler.cancel(attempt.key)
        return True

    def needing_kv(self) -> list[Attempt]:
        """Attempts whose KV has not all come."""
        joined = {run.key for run in self.scheduler._running}
        return [each for key, each in self.attempts.items() if not each.emitted and key not in joined]
