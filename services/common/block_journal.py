"""What a worker's prefix cache holds, by short hash, and how that changed of late. Pure.

A reader that comes back with the position of its last look gets what changed since; one that comes for the first time,
or too late for the changes that are kept, gets everything.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

MAX_CHANGES = 2**16


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """Short hashes of blocks that became known, and of those that are no longer; no hash is in both."""

    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """False where nothing changed."""
        return bool(self.added or self.removed)


NO_CHANGES = BlockChanges()


@dataclass(frozen=True, slots=True)
class BlockNews:
    """What a reader must know to be up to date at `position`; where `is_whole`, it starts from nothing."""

    position: int
    is_whole: bool
    changes: BlockChanges


class BlockJournal:
    """Owned by the event loop; holds a hash for each known block and at most `max_changes` changes."""

    def __init__(self, max_changes: int = MAX_CHANGES) -> None:
        self._known: set[int] = set()
        self._log: deque[tuple[int, bool]] = deque(maxlen=max_changes)
        self.position = 0

    def __len__(self) -> int:
        """Blocks that are known now."""
        return len(self._known)

    def apply(self, changes: BlockChanges) -> None:
        """Notes what changed."""
        self._known.difference_update(changes.removed)
        self._known.update(changes.added)
        self._note(changes.removed, is_added=False)
        self._note(changes.added, is_added=True)

    def since(self, position: int | None) -> BlockNews:
        """What changed since a position; everything for None."""
        missed = self.position - position if position is not None else None
        if missed is None or missed > len(self._log):
            return BlockNews(self.position, True, BlockChanges(tuple(self._known)))
        last = dict(islice(self._log, len(self._log) - missed, None))
        added = tuple(each for each, is_added in last.items() if is_added)
        removed = tuple(each for each, is_added in last.items() if not is_added)
        return BlockNews(self.position, False, BlockChanges(added, removed))

    def _note(self, hashes: Iterable[int], *, is_added: bool) -> None:
        for each in hashes:
            self._log.append((each, is_added))
            self.position += 1
