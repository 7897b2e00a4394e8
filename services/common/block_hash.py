"""Names the content of full KV blocks by a chain of digests. Pure; workers and frontends compute the same chain.

Source: vLLM's automatic prefix caching.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

_SHORT_BYTES = 8


def hash_chain(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[bytes]:
    """Digests of all full blocks of `token_ids`; each covers the salt and everything before it.

    Equal digests mean equal content: 16 bytes of BLAKE2b, so that no client can aim for a collision.
    """
    return list(walk_chain(token_ids, block_size, salt))


def walk_chain(token_ids: Sequence[int], block_size: int, salt: str = "") -> Iterator[bytes]:
    """As `hash_chain`, one digest after another, so that whoever has seen enough can stop."""
    parent = chain_root(salt)
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = extend_chain(parent, token_ids[start : start + block_size])
        yield parent


def chain_root(salt: str) -> bytes:
    """Digest that stands before the first block."""
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


def extend_chain(parent: bytes, block_tokens: Sequence[int]) -> bytes:
    """Digest of one full block after `parent`."""
    content = struct.pack(f"<{len(block_tokens)}I", *block_tokens)
    return hashlib.blake2b(content, digest_size=16, key=parent).digest()


def short_hash(digest: bytes) -> int:
    """The first 64 bits of a digest: enough to guess who holds a block, never to reuse one."""
    return int.from_bytes(digest[:_SHORT_BYTES], "little")
