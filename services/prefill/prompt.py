"""A prompt as the scheduler sees it. Plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True, eq=False)
class Prompt:
    """One prompt on its way; positions below `computed` are in KV, `cached` of them came from the prefix cache."""

    key: int
    token_ids: Sequence[int]
    cache_salt: str = ""
    rank: float = 0.0
    is_awaited: bool = True
    block_ids: list[int] = field(default_factory=list[int])
    chain: list[bytes] = field(default_factory=list[bytes])
    computed: int = 0
    cached: int = 0

    @property
    def missing(self) -> int:
        """Tokens that still need a forward pass."""
        return len(self.token_ids) - self.computed
