"""Accounts for KV blocks: who holds which, which are free, which hold a known prefix.

Pure bookkeeping over block ids; knows neither tensors nor requests. One thread owns a pool. A block is in exactly one
of three states:

    free      nobody holds it, its content is worthless
    held      one or more holders (`holders` counts them)
    cached    nobody holds it, its content is a known prefix; reused or evicted, least recently used first

Source: vLLM's paged attention (arXiv 2309.06180). What a digest covers is `common/block_hash.py`'s.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.block_hash import short_hash
from services.common.block_journal import NO_CHANGES, BlockChanges


class BlocksExhausted(Exception):
    """Fewer blocks than asked for can be had; nothing was allocated."""


@dataclass(frozen=True, slots=True)
class BlockStats:
    """Counts of a pool: blocks by state, and prefix-cache queries and hits in blocks since the start."""

    total: int
    free: int
    held: int
    cached: int
    cache_queries: int
    cache_hits: int


class BlockPool:
    """Hands out blocks 0 .. num_blocks-1 and takes them back.

    Thread: owned by one thread. Every method either succeeds or changes nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._free: deque[int] = deque(range(num_blocks))
        self._holders = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._changed: dict[bytes, bool] = {}
        self._queries = 0
        self._hits = 0

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free ones and cached ones that nobody holds."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks, free ones first, then the least recently used cached ones.

        Raises:
            BlocksExhausted: nothing was taken.
        """
        if count > self.num_available:
            raise BlocksExhausted(f"{count} blocks wanted, {self.num_available} available of {self.num_blocks}")
        return [self._take() for _ in range(count)]

    def acquire_prefix(self, chain: Sequence[bytes]) -> list[int]:
        """Takes the cached blocks of the longest known prefix of `chain` and returns them; may be empty."""
        self._queries += len(chain)
        found: list[int] = []
        for digest in chain:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        for block in found:
            self._hold(block)
        self._hits += len(found)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Adds one holder to each of these held blocks."""
        for block in blocks:
            self._hold(block)

    def is_shared(self, block: int) -> bool:
        """True where a write must copy the block first: another holder would see it."""
        return self._holders[block] > 1

    def release(self, blocks: Iterable[int]) -> None:
        """Takes one holder from each block; a block without holders is cached if its content is known, else free.

        Later blocks of a prefix are released first, so that eviction eats a chain from its end.
        """
        for block in reversed(list(blocks)):
            if self._holders[block] <= 0:
                raise AssertionError(f"block {block} released without a holder")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._retire(block)

    def remember(self, block: int, digest: bytes) -> None:
        """Records that a held, full block holds the content of `digest`; the first block with a digest keeps it."""
        if self.prefix_caching and digest not in self._block_of and block not in self._hash_of:
            self._hash_of[block] = digest
            self._block_of[digest] = block
            self._change(digest, is_known=True)

    def forget(self, blocks: Iterable[int]) -> None:
        """Drops what is known of these blocks: their content may be wrong, and no other request must find it."""
        for block in blocks:
            digest = self._hash_of.pop(block, None)
            if digest is not None:
                del self._block_of[digest]
                self._change(digest, is_known=False)
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def take_changes(self) -> BlockChanges:
        """Which digests became known or unknown since the last call; at most two for each block."""
        if not self._changed:
            return NO_CHANGES
        changed, self._changed = self._changed, {}
        added = tuple(short_hash(digest) for digest, is_known in changed.items() if is_known)
        return BlockChanges(added, tuple(short_hash(digest) for digest, is_known in changed.items() if not is_known))

    def stats(self) -> BlockStats:
        """Counts by state."""
        free, cached = len(self._free), len(self._cached)
        held = self.num_blocks - free - cached
        return BlockStats(self.num_blocks, free, held, cached, self._queries, self._hits)

    def check(self) -> None:
        """Raises AssertionError unless every block is in exactly one state and the hash tables agree."""
        free, cached = set(self._free), set(self._cached)
        held = {block for block, count in enumerate(self._holders) if count > 0}
        if len(free) != len(self._free) or free & cached or free & held or cached & held:
            raise AssertionError("a block is in two states")
        if len(free) + len(cached) + len(held) != self.num_blocks:
            raise AssertionError("a block is in no state")
        if {digest: block for block, digest in self._hash_of.items()} != self._block_of:
            raise AssertionError("hash tables disagree")
        if not cached <= self._hash_of.keys() or free & self._hash_of.keys():
            raise AssertionError("a cached block has no digest, or a free one has")

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._cached.popitem(last=False)
            digest = self._hash_of.pop(block)
            del self._block_of[digest]
            self._change(digest, is_known=False)
        self._holders[block] = 1
        return block

    def _change(self, digest: bytes, *, is_known: bool) -> None:
        """Notes a change, or drops the one before that it undoes."""
        if self._changed.pop(digest, is_known) is is_known:
            self._changed[digest] = is_known

    def _hold(self, block: int) -> None:
        self._cached.pop(block, None)
        self._holders[block] += 1

    def _retire(self, block: int) -> None:
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._free.append(block)
