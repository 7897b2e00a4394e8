"""The workers as the router sees them. Pure data.

Load reports are a moment old, so what this frontend has sent since then is counted on top.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from services.common.types import Load, Tier, WorkerInfo
from services.frontend.routing.prefix import Prefix


@dataclass(frozen=True, slots=True)
class Sent:
    """Requests that this frontend sent to a worker, and their prompt tokens.

    `cached` are those of the tokens that it need not compute: they should be in its prefix cache, or are handed to it.
    """

    requests: int = 0
    tokens: int = 0
    cached: int = 0

    @property
    def missing(self) -> int:
        """Prompt tokens that must be computed."""
        return self.tokens - self.cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that can be reached; `unfinished` is all that this frontend has there, `unreported` its latest part.

    `ramp` is the share of its weight that a fresh worker has so far, in (0, 1]. `known_blocks` has the short hashes of
    the blocks in its prefix cache, where somebody watches them.
    """

    worker: WorkerInfo
    load: Load
    unfinished: Sent = Sent()
    unreported: Sent = Sent()
    ramp: float = 1.0
    known_blocks: AbstractSet[int] = field(default=frozenset(), repr=False)

    @property
    def worker_id(self) -> str:
        """Name of the worker."""
        return self.worker.worker_id

    @property
    def weight(self) -> float:
        """How much of the tier's work it should get, relative to the others; above 0."""
        return self.worker.weight * self.ramp

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens that the worker has yet to run."""
        return max(self.load.outstanding_tokens + self.unreported.missing, self.unfinished.missing)

    @property
    def uncomputed_tokens(self) -> int:
        """As `outstanding_tokens`, where requests stay long after their prompts have run: by the report alone."""
        return self.load.outstanding_tokens + self.unreported.missing

    @property
    def streams(self) -> int:
        """Streams that decode there, or are about to."""
        return self.load.running_requests + self.load.handoffs

    @property
    def requests(self) -> int:
        """Requests that run or wait there."""
        reported = self.load.running_requests + self.load.waiting_requests
        return max(reported + self.unreported.requests, self.unfinished.requests)

    @property
    def free_blocks(self) -> int:
        """KV blocks that are left when everything sent has arrived."""
        reported = self.load.free_blocks - self.blocks(self.unreported.tokens)
        return min(reported, self.total_blocks - self.blocks(self.unfinished.tokens))

    @property
    def total_blocks(self) -> int:
        """KV blocks of the worker."""
        return self.load.total_blocks or self.worker.total_blocks

    def blocks(self, tokens: int) -> int:
        """Blocks that the KV of so many tokens takes there."""
        return -(-tokens // max(1, self.worker.layout.block_size))

    def cached_tokens(self, prefix: Prefix) -> int:
        """Leading tokens of a prompt that are thought to be in the prefix cache there."""
        return prefix.matched_tokens(self.known_blocks, self.worker.layout.block_size)

    def pressure(self, tokens: int) -> float:
        """How full the worker is with one more request of so many tokens of KV; above 2 it queues.

        The used share of its slots plus the used share of its blocks.
        """
        slots = (self.requests + 1) / max(1, self.worker.max_num_seqs)
        return slots + 1 - (self.free_blocks - self.blocks(tokens)) / max(1, self.total_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All reachable workers, ordered by id, and the pairs (prefill id, decode id) that cannot work together.

    `ejected` workers failed lately; they are used only where no other can serve. `is_unproven` where only channels that
    should be open by now keep every prefill worker from being used.
    """

    candidates: tuple[Candidate, ...] = ()
    refused: frozenset[tuple[str, str]] = frozenset()
    ejected: frozenset[str] = frozenset()
    is_unproven: bool = False

    @property
    def can_serve(self) -> bool:
        """True where some worker can run a whole request or its decode leg."""
        return any(c.worker.tier is not Tier.PREFILL and not c.load.draining for c in self.candidates)
