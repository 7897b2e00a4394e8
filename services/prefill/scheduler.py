"""Decides which prompt chunks the next step computes. Pure: plain data in, plan out.

A prompt's states, each a container here:

    waiting ──admitted, blocks taken──▶ running ──last chunk──▶ held ──released──▶ gone
       └──────────── stopped ────────────┴── stopped: held until released

By rank (first come, first served within a priority class), with chunks under a token budget. All blocks of a prompt
are taken at admission, so a running prompt never waits for blocks. Blocks are given back by `release` alone: a ticket's
reader may still look at them.

A prompt is awaited once a decode worker with a seat for it has asked for its KV; one without a ticket always is. What
nobody awaits runs ahead of decode only within `Ahead`: a few prompts, and never so many blocks that the largest prompt
would not fit beside them. So an awaited prompt waits for awaited ones alone, and those need nothing that waits for it
(docs/adr/0010-seats-before-prefill.md).
"""

from dataclasses import dataclass

from services.common.block_hash import hash_chain
from services.engine.blocks import BlockPool
from services.prefill.ahead import Ahead, Credit
from services.prefill.prompt import Prompt
from services.prefill.waiting import WaitingPrompts


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, end) of a prompt, computed in one step."""

    prompt: Prompt
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """True where the prompt's first token can be sampled after it."""
        return self.end == len(self.prompt.token_ids)


@dataclass(frozen=True, slots=True)
class PrefillStats:
    """Prompts by state, and tokens of waiting and running ones that still need a forward pass.

    `ahead` counts prompts that hold blocks although nobody awaits them.
    """

    waiting: int
    running: int
    held: int
    outstanding_tokens: int
    ahead: int = 0


class PrefillScheduler:
    """Plans prefill steps over one block pool. Thread: owned by one thread."""

    def __init__(
        self, pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int, ahead: Ahead | None = None
    ) -> None:
        self._pool = pool
        self._credit = Credit(ahead or Ahead())
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting = WaitingPrompts()
        self._running: dict[int, Prompt] = {}
        self._held: dict[int, Prompt] = {}

    def submit(self, prompt: Prompt) -> None:
        """Queues a prompt; its blocks must fit into the pool as a whole."""
        self._waiting.add(prompt)

    def note_awaited(self, key: int, *, is_awaited: bool) -> None:
        """Somebody awaits a prompt, or does no longer; one that has blocks stays awaited. Unknown keys are ignored."""
        self._waiting.note_awaited(key, is_awaited=is_awaited)
        prompt = self._running.get(key) or self._held.get(key)
        if prompt is not None and is_awaited:
            prompt.is_awaited = True
            self._credit.give_back(key)

    def plan(self) -> list[Chunk]:
        """Chunks of the next step, admitted prompts first; empty where there is nothing to do or no room."""
        budget = self._max_num_batched_tokens
        chunks: list[Chunk] = []
        for prompt in self._running.values():
            budget -= _take_chunk(prompt, budget, chunks)
        self._plan_admission(budget, chunks)
        return chunks

    def commit(self, chunk: Chunk) -> None:
        """Records that a chunk is computed; after the last one the prompt is held."""
        prompt = chunk.prompt
        size = self._pool.block_size
        for block in range(chunk.start // size, chunk.end // size):
            self._pool.remember(prompt.block_ids[block], prompt.chain[block])
        prompt.computed = chunk.end
        if chunk.is_last:
            self._held[prompt.key] = self._running.pop(prompt.key)

    def stop(self, key: int) -> None:
        """Computes no more of a prompt; blocks that it has stay until `release`. Unknown keys are ignored."""
        if key in self._running:
            self._held[key] = self._running.pop(key)
        else:
            self._waiting.remove(key)

    def release(self, key: int) -> None:
        """Gives a held prompt's blocks back. Unknown keys are ignored."""
        prompt = self._held.pop(key, None)
        if prompt is not None:
            self._pool.release(prompt.block_ids)
            self._credit.give_back(key)

    def stats(self) -> PrefillStats:
        """Counts by state."""
        tokens = self._waiting.tokens + sum(prompt.missing for prompt in self._running.values())
        return PrefillStats(len(self._waiting), len(self._running), len(self._held), tokens, len(self._credit))

    def _plan_admission(self, budget: int, chunks: list[Chunk]) -> None:
        """Admits by rank and appends first chunks. Ends where no later prompt can be admitted, however many wait."""
        admitted: list[Prompt] = []
        for prompt in self._waiting.in_order(lambda: self._credit.allows(1)):
            if budget <= 0 or len(self._running) >= self._max_num_seqs or not self._pool.num_available:
                break  # cached blocks do not help without a free one: a prompt computes a token at least
            if not prompt.is_awaited and not self._credit.allows(self._blocks(prompt)):
                continue
            if self._admit(prompt):
                admitted.append(prompt)
                self._running[prompt.key] = prompt
                budget -= _take_chunk(prompt, budget, chunks)
            elif prompt.is_awaited:
                break  # nobody overtakes it; those that nobody awaits keep nobody waiting
        for prompt in admitted:
            self._waiting.remove(prompt.key)

    def _blocks(self, prompt: Prompt) -> int:
        return -(-len(prompt.token_ids) // self._pool.block_size)

    def _admit(self, prompt: Prompt) -> bool:
        """Takes all blocks of a prompt, cached ones first; False, with nothing taken, where the pool lacks room.

        At least one token is left to compute: its logits give the first token.
        """
        size = self._pool.block_size
        prompt.chain = prompt.chain or hash_chain(prompt.token_ids, size, prompt.cache_salt)
        cached = self._pool.acquire_prefix(prompt.chain[: (len(prompt.token_ids) - 1) // size])
        wanted = self._blocks(prompt) - len(cached)
        if wanted > self._pool.num_available:
            self._pool.release(cached)
            return False
        prompt.block_ids = cached + self._pool.allocate(wanted)
        prompt.computed = prompt.cached = len(cached) * size
        if not prompt.is_awaited:
            self._credit.take(prompt.key, len(prompt.block_ids))
        return True


def _take_chunk(prompt: Prompt, budget: int, chunks: list[Chunk]) -> int:
    """Appends the prompt's next chunk within the budget; returns its tokens."""
    taken = min(prompt.missing, budget)
    if taken > 0:
        chunks.append(Chunk(prompt, prompt.computed, prompt.computed + taken))
    return taken
