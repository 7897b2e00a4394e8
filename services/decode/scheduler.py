"""Decides what the next decode step computes: continuous batching. Pure: plain data in, plan out.

A run is one choice's way through the blocks. Its states, each a container here:

    waiting ──blocks reserved──▶ loading ──KV arrived (join)──▶ running ──finish──▶ gone
       │                                                          ▲   │
       └──blocks taken, prompt computed here──────────────────────┘   │
       ▲                                                              │
       └────────────── preempted: blocks given back, computed again ──┘

Running choices come first, one token each, by rank; what is left of the token budget goes to prompts that this worker
computes itself (no handoff, or preempted). When blocks run out the run with the last rank is preempted (the lowest
priority class, its youngest first), so the first always moves on. Loading runs are never preempted: a writer may touch
their blocks. Waiting runs are admitted by rank, too: first come, first served within a class, with aging between them.

Source: continuous batching, Orca (OSDI 2022); recomputation as preemption, vLLM (arXiv 2309.06180).
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.block_hash import chain_root, extend_chain, hash_chain
from services.decode.plan import Run, Share, StepPlan
from services.engine.blocks import BlockPool, BlocksExhausted


@dataclass(frozen=True, slots=True)
class DecodeStats:
    """Runs by state, and tokens of waiting and running ones beyond the one of a plain decode step."""

    waiting: int
    loading: int
    running: int
    outstanding_tokens: int


class DecodeScheduler:
    """Plans decode steps over one block pool. Thread: owned by one thread."""

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: list[Run] = []
        self._waiting_tokens = 0  # summed up as runs come and go: stats are asked for at every step
        self._loading: dict[int, Run] = {}
        self._running: list[Run] = []
        self._blocked: tuple[Run, int, int] | None = None

    def submit(self, run: Run) -> None:
        """Queues a run whose blocks fit into the pool as a whole and whose choices fit into the slots."""
        bisect.insort(self._waiting, run, key=_rank)
        self._waiting_tokens += _tokens_to_compute(run)

    def plan(self) -> StepPlan:
        """What the next step computes; without shares where there is nothing to do or no room."""
        plan = StepPlan()
        budget = self._max_num_batched_tokens
        budget -= self._plan_decode(plan)
        budget -= self._plan_chunks(plan, budget)
        self._plan_admission(plan, budget)
        return plan

    def commit(self, share: Share) -> None:
        """Records that a share is computed and remembers the blocks that it filled."""
        share.run.computed = share.end
        self._remember(share.run, share.start)

    def join(self, key: int, first_tokens: Mapping[int, int]) -> None:
        """Starts a loading run whose KV has arrived, with the first token of every choice that goes on."""
        run = self._loading.pop(key)
        run.computed = run.num_prompt
        self._remember(run, run.cached)
        self._fork(run, first_tokens)

    def fork(self, run: Run, first_tokens: Mapping[int, int]) -> None:
        """Replaces a running run whose prompt was computed here by the choices that go on."""
        self._running.remove(run)
        self._fork(run, first_tokens)

    def finish(self, run: Run) -> None:
        """Ends a running choice and gives its blocks back."""
        self._running.remove(run)
        self._pool.release(run.block_ids)

    def cancel(self, key: int) -> None:
        """Drops all runs of a request. The caller knows that nothing writes into a loading run's blocks any more."""
        self._waiting_tokens -= sum(_tokens_to_compute(run) for run in self._waiting if run.key == key)
        self._waiting = [run for run in self._waiting if run.key != key]
        gone = [run for run in self._running if run.key == key]
        self._running = [run for run in self._running if run.key != key]
        if key in self._loading:
            gone.append(self._loading.pop(key))
        for run in gone:
            self._pool.release(run.block_ids)

    def stats(self) -> DecodeStats:
        """Counts by state."""
        tokens = self._waiting_tokens + sum(run.missing - 1 for run in self._running)
        return DecodeStats(len(self._waiting), len(self._loading), len(self._running), tokens)

    def _plan_decode(self, plan: StepPlan) -> int:
        for run in list(self._running):
            if run.missing == 1 and run.block_ids and self._make_room(run, plan):
                plan.shares.append(Share(run, run.computed, run.computed + 1, is_sampling=True))
        return len(plan.shares)

    def _plan_chunks(self, plan: StepPlan, budget: int) -> int:
        used = 0
        for run in self._running:
            if run.missing > 1 and used < budget:
                used += _take_share(run, budget - used, plan)
        return used

    def _plan_admission(self, plan: StepPlan, budget: int) -> None:
        if not self._waiting:
            return
        slots = sum(run.num_choices for run in (*self._running, *self._loading.values()))
        while self._waiting and not plan.preempted:
            run = self._waiting[0]
            if not run.is_fetched and budget <= 0:
                return
            if slots + run.num_choices > self._max_num_seqs or not self._reserve(run):
                return
            self._waiting.pop(0)
            self._waiting_tokens -= _tokens_to_compute(run)
            slots += run.num_choices
            if run.is_fetched:
                self._loading[run.key] = run
                plan.reserved.append(run)
            else:
                bisect.insort(self._running, run, key=_rank)
                plan.admitted.append(run)
                budget -= _take_share(run, budget, plan)

    def _make_room(self, run: Run, plan: StepPlan) -> bool:
        """Makes the block of the run's next position its own; False where the run itself was preempted for it."""
        while run.block_ids:
            try:
                self._own_block(run, plan)
                return True
            except BlocksExhausted:
                self._preempt(self._running[-1], plan)
        return False

    def _own_block(self, run: Run, plan: StepPlan) -> None:
        """Appends the block of the next position, or copies it on write where other choices share it."""
        position = run.computed // self._pool.block_size
        if position == len(run.block_ids):
            run.block_ids += self._pool.allocate(1)
        elif self._pool.is_shared(run.block_ids[position]):
            (copy,) = self._pool.allocate(1)
            plan.copies.append((run.block_ids[position], copy))
            self._pool.release([run.block_ids[position]])
            run.block_ids[position] = copy

    def _preempt(self, run: Run, plan: StepPlan) -> None:
        """Gives the blocks of a run back; it waits before its equals and is computed again from its tokens."""
        self._running.remove(run)
        self._pool.release(run.block_ids)
        run.block_ids, run.chain, run.computed, run.cached, run.is_fetched = [], [], 0, 0, False
        bisect.insort_left(self._waiting, run, key=_rank)
        self._waiting_tokens += _tokens_to_compute(run)
        plan.preempted.append(run)

    def _reserve(self, run: Run) -> bool:
        """Takes all blocks of a waiting run, cached ones first; False, with nothing taken, where the pool lacks room.

        One block for each running choice is left over, so that an admission does not preempt what runs. A run that is
        computed here keeps at least one token to compute: its logits give the next token.
        """
        size = self._pool.block_size
        if self._blocked == (run, self._pool.num_available, len(self._running)):
            return False  # nothing has changed since it was looked at last
        run.chain = run.chain or hash_chain(run.tokens, size, run.cache_salt)
        usable = len(run.tokens) if run.is_fetched else len(run.tokens) - 1
        cached = self._pool.acquire_prefix(run.chain[: usable // size])
        wanted = -(-len(run.tokens) // size) - len(cached)
        if wanted + len(self._running) > self._pool.num_available:
            self._pool.release(cached)
            self._blocked = (run, self._pool.num_available, len(self._running))
            return False
        run.block_ids = cached + self._pool.allocate(wanted)
        run.computed = run.cached = len(cached) * size
        return True

    def _fork(self, run: Run, first_tokens: Mapping[int, int]) -> None:
        """Starts one run for each choice that goes on; they share the prompt's blocks until they write."""
        for choice, token in first_tokens.items():
            self._pool.share(run.block_ids)
            fork = Run(
                key=run.key,
                tokens=[*run.tokens, token],
                num_prompt=run.num_prompt,
                choice=choice,
                cache_salt=run.cache_salt,
                rank=run.rank,
                is_forked=True,
                block_ids=list(run.block_ids),
                chain=list(run.chain),
                computed=run.computed,
                cached=run.cached,
            )
            bisect.insort(self._running, fork, key=_rank)
        self._pool.release(run.block_ids)

    def _remember(self, run: Run, start: int) -> None:
        """Enters the blocks filled since position `start` into the prefix cache."""
        size = self._pool.block_size
        for block in range(start // size, run.computed // size):
            if block == len(run.chain):
                parent = run.chain[-1] if run.chain else chain_root(run.cache_salt)
                run.chain.append(extend_chain(parent, run.tokens[block * size : (block + 1) * size]))
            self._pool.remember(run.block_ids[block], run.chain[block])


def _rank(run: Run) -> float:
    return run.rank


def _tokens_to_compute(run: Run) -> int:
    """What a waiting run will have to compute; of a fetched one, nothing."""
    return 0 if run.is_fetched else len(run.tokens)


def _take_share(run: Run, budget: int, plan: StepPlan) -> int:
    """Appends the run's next chunk within the budget; returns its tokens."""
    taken = min(run.missing, budget)
    end = run.computed + taken
    plan.shares.append(Share(run, run.computed, end, is_sampling=end == len(run.tokens)))
    return taken
