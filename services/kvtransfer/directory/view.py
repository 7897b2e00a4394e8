"""What a watcher believes while the directory is away: pure data, told the time by whoever calls.

The directory's state is soft: one that restarts knows nobody until the workers renew. So a watcher keeps the last
snapshot while the directory is away and, after meeting a new start of it, for one more grace. Knows no sockets.
"""

import dataclasses

from services.common.types import Membership, RefusedPair, WorkerInfo

# The revision of every start of a directory begins at random; one start will not count this far.
SAME_START_SPAN = 2**32


class MembershipView:
    """Merges snapshots over restarts of the directory.

    Args:
        grace_s: how long a member of an earlier start is kept without having registered again.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._latest: Membership | None = None
        self._kept: dict[str, WorkerInfo] = {}
        self._kept_pairs: tuple[RefusedPair, ...] = ()
        self._kept_until = 0.0

    def update(self, snapshot: Membership, now: float) -> Membership:
        """Takes a snapshot from the directory; gives what to believe now."""
        if self._latest is not None and not _is_same_start(self._latest, snapshot):
            believed = self.current(now)
            self._kept = {worker.worker_id: worker for worker in believed.workers}
            self._kept_pairs = believed.refused_pairs
            self._kept_until = now + self._grace_s
        for worker in snapshot.workers:
            self._kept.pop(worker.worker_id, None)
        self._latest = snapshot
        return self.current(now)

    def current(self, now: float) -> Membership:
        """What to believe now; empty before the first snapshot."""
        latest = self._latest or Membership()
        if now >= self._kept_until:
            self._kept.clear()
        if not self._kept:
            return latest
        workers = sorted((*latest.workers, *self._kept.values()), key=lambda worker: worker.worker_id)
        known = {(pair.prefill_worker_id, pair.decode_worker_id) for pair in latest.refused_pairs}
        pairs = [
            pair
            for pair in self._kept_pairs
            if (pair.prefill_worker_id, pair.decode_worker_id) not in known
            and (pair.prefill_worker_id in self._kept or pair.decode_worker_id in self._kept)
        ]
        return dataclasses.replace(latest, workers=tuple(workers), refused_pairs=(*latest.refused_pairs, *pairs))

    def next_change(self) -> float | None:
        """When `current` changes by itself, because a grace ends."""
        return self._kept_until if self._kept else None


def _is_same_start(earlier: Membership, later: Membership) -> bool:
    return 0 <= later.revision - earlier.revision < SAME_START_SPAN
