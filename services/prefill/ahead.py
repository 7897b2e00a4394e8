"""How far prefill runs ahead of decode: the bounds, and what of them is used. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ahead:
    """How many prompts that nobody awaits may hold blocks, and how many blocks those may hold."""

    prompts: int = 0
    blocks: int = 0

    @classmethod
    def beside(cls, largest_blocks: int, *, prompts: int, num_blocks: int) -> "Ahead":
        """What leaves room for the largest prompt in a pool of `num_blocks`."""
        return cls(prompts, max(0, num_blocks - largest_blocks))


class Credit:
    """Prompts that hold blocks although nobody awaits them; sums are kept, so that no question costs more with many."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._blocks_of: dict[int, int] = {}
        self._blocks = 0

    def __len__(self) -> int:
        return len(self._blocks_of)

    def allows(self, num_blocks: int) -> bool:
        """Whether one more prompt may take so many blocks."""
        return len(self) < self._ahead.prompts and self._blocks + num_blocks <= self._ahead.blocks

    def take(self, key: int, num_blocks: int) -> None:
        """A prompt that nobody awaits has taken its blocks."""
        self._blocks_of[key] = num_blocks
        self._blocks += num_blocks

    def give_back(self, key: int) -> None:
        """Somebody awaits the prompt, or its blocks are free. Idempotent."""
        self._blocks -= self._blocks_of.pop(key, 0)
