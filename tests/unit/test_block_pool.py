"""The block pool: no block is ever in two states, and prefixes are found only where their content is."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from services.common.block_hash import hash_chain
from services.engine.blocks import BlockPool, BlocksExhausted


class PoolMachine(RuleBasedStateMachine):
    """Random allocation, sharing, caching and release; `check` holds after every rule."""

    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8, 2)
        self.held = 0

    @rule(target=holdings, count=st.integers(1, 4))
    def allocate(self, count: int):
        available = self.pool.num_available
        try:
            blocks = self.pool.allocate(count)
        except BlocksExhausted:
            assert count > available
            assert self.pool.num_available == available
            return multiple()
        assert len(set(blocks)) == count
        return blocks

    @rule(blocks=holdings, tokens=st.lists(st.integers(0, 1), min_size=8, max_size=8))
    def remember(self, blocks: list[int], tokens: list[int]) -> None:
        for block, digest in zip(blocks, hash_chain(tokens, 2), strict=False):
            self.pool.remember(block, digest)

    @rule(target=holdings, tokens=st.lists(st.integers(0, 1), min_size=8, max_size=8))
    def acquire(self, tokens: list[int]):
        found = self.pool.acquire_prefix(hash_chain(tokens, 2))
        return found if found else multiple()

    @rule(target=holdings, blocks=holdings)
    def share(self, blocks: list[int]) -> list[int]:
        self.pool.share(blocks)
        assert all(self.pool.is_shared(block) for block in blocks)
        return list(blocks)

    @rule(blocks=consumes(holdings))
    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)

    @rule(blocks=holdings)
    def forget(self, blocks: list[int]) -> None:
        self.pool.forget(blocks)

    @invariant()
    def accounts_agree(self) -> None:
        self.pool.check()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_release_twice_is_an_error():
    """A block that nobody holds cannot be released: a double free never goes unnoticed."""
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="without a holder"):
        pool.release(blocks)


def test_prefix_is_found_after_release():
    """A released block whose content is known serves the next request with the same prefix."""
    pool = BlockPool(4, 2)
    chain = hash_chain([1, 2, 3, 4, 5], 2)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, chain, strict=False):
        pool.remember(block, digest)
    pool.release(blocks)
    assert pool.acquire_prefix(chain) == blocks[:2]


def test_salt_separates_prefixes():
    """Requests of different salts never share KV, whatever their tokens."""
    assert set(hash_chain([1, 2, 3, 4], 2, "a")).isdisjoint(hash_chain([1, 2, 3, 4], 2, "b"))


def test_digest_covers_everything_before():
    """The same block after a different prefix has a different digest."""
    assert hash_chain([1, 2, 9, 9], 2)[1] != hash_chain([3, 4, 9, 9], 2)[1]


def test_eviction_takes_the_end_of_the_oldest_chain_first():
    """When room is needed a cached chain is eaten from its end, so that what is left is still a prefix."""
    pool = BlockPool(3, 2)
    chain = hash_chain([1, 2, 3, 4, 5, 6], 2)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, chain, strict=True):
        pool.remember(block, digest)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.acquire_prefix(chain) == blocks[:2]


def test_caching_off_remembers_nothing():
    """With prefix caching off a released block is free and no prefix is found."""
    pool = BlockPool(2, 2, prefix_caching=False)
    chain = hash_chain([1, 2], 2)
    blocks = pool.allocate(1)
    pool.remember(blocks[0], chain[0])
    pool.release(blocks)
    assert pool.acquire_prefix(chain) == []
    assert pool.stats().cached == 0


def test_forgotten_blocks_are_found_by_nobody():
    """Blocks whose content may be wrong leave the prefix cache, held or not."""
    pool = BlockPool(4, 2)
    chain = hash_chain([1, 2, 3, 4], 2)
    blocks = pool.allocate(2)
    for block, digest in zip(blocks, chain, strict=True):
        pool.remember(block, digest)
    pool.release(blocks[1:])
    pool.forget(blocks)
    assert pool.acquire_prefix(chain) == []
    pool.release(blocks[:1])
    assert pool.stats().free == 4
