"""Guesses how much of a prompt a worker has in its prefix cache. Pure.

The guess is compared block by block from the front, in the chain that workers compute themselves. It may be wrong (a
report is a moment old, hashes are cut to 64 bits); then the worker computes what it lacks, and nothing else happens.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile

from services.common.block_hash import short_hash, walk_chain


class Prefix:
    """A prompt's chain of blocks, computed only as far as somebody knows it, once for each block size."""

    def __init__(self, token_ids: Sequence[int] = (), salt: str = "") -> None:
        self._token_ids = token_ids
        self._salt = salt
        self._chains: dict[int, tuple[list[int], Iterator[bytes]]] = {}

    def matched_tokens(self, known: AbstractSet[int], block_size: int) -> int:
        """Leading tokens whose blocks are all `known`; at least one token is always left to compute."""
        if not known or block_size <= 0:
            return 0
        chain, rest = self._chain(block_size)
        count = len(list(takewhile(known.__contains__, chain)))
        while count == len(chain) and (digest := next(rest, None)) is not None:
            chain.append(short_hash(digest))
            count += chain[-1] in known
        return min(count * block_size, len(self._token_ids) - 1)

    def _chain(self, block_size: int) -> tuple[list[int], Iterator[bytes]]:
        """What has been computed of the chain, and what gives the rest."""
        if block_size not in self._chains:
            self._chains[block_size] = ([], walk_chain(self._token_ids, block_size, self._salt))
        return self._chains[block_size]
