"""What a worker tells of its prefix cache: from the pool's changes over the journal to whoever reads it."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.block_hash import hash_chain, short_hash
from services.common.block_journal import NO_CHANGES, BlockChanges, BlockJournal, BlockNews
from services.engine.blocks import BlockPool


class Reader:
    """Somebody who follows a journal."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.known: set[int] = set()

    def read(self, journal: BlockJournal) -> BlockNews:
        """Catches up."""
        news = journal.since(self.position)
        if news.is_whole:
            self.known.clear()
        self.known -= set(news.changes.removed)
        self.known |= set(news.changes.added)
        self.position = news.position
        return news


# A step of a pool: how many blocks of which prompt to hold, and whether they turn out wrong.
_PROMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=40)


@given(prompts=_PROMPTS, every=st.integers(1, 5), max_changes=st.integers(1, 12))
def test_reader_knows_what_the_pool_knows(prompts: list[tuple[int, int, bool]], every: int, max_changes: int) -> None:
    """However blocks come, are evicted and forgotten, and however late the reader is: after reading it knows all."""
    pool, journal, reader = BlockPool(6, 2), BlockJournal(max_changes), Reader()
    for number, (first, count, is_wrong) in enumerate(prompts):
        chain = hash_chain([first] * count * 2, 2)
        blocks = pool.acquire_prefix(chain)
        blocks += pool.allocate(count - len(blocks))
        for block, digest in zip(blocks, chain, strict=True):
            pool.remember(block, digest)
        if is_wrong:
            pool.forget(blocks)
        pool.release(blocks)
        journal.apply(pool.take_changes())
        if number % every == 0:
            reader.read(journal)
            known = {short_hash(digest) for digest in _known(pool)}
            assert reader.known == known
            assert len(journal) == len(known)
    assert pool.take_changes() is NO_CHANGES


def _known(pool: BlockPool) -> set[bytes]:
    """Digests that the pool would find; asked without touching its order."""
    return {d for first in range(4) for d in hash_chain([first] * 10, 2) if d in pool._block_of}  # pyright: ignore


def test_late_reader_starts_anew() -> None:
    """Whoever missed more changes than are kept gets everything, not a wrong rest."""
    journal, reader = BlockJournal(max_changes=2), Reader()
    assert reader.read(journal).is_whole
    journal.apply(BlockChanges(added=(1, 2)))
    assert not reader.read(journal).is_whole
    journal.apply(BlockChanges(added=(3,), removed=(1, 2)))
    assert reader.read(journal).is_whole
    assert reader.known == {3}


def test_block_that_comes_and_goes_between_two_looks_is_not_news() -> None:
    """The pool tells the difference between two reports, so what is told is bounded by its blocks."""
    pool = BlockPool(2, 2)
    (block,) = pool.allocate(1)
    (digest,) = hash_chain([1, 2], 2)
    for _ in range(3):
        pool.remember(block, digest)
        pool.forget([block])
    assert pool.take_changes() is NO_CHANGES
