"""What a watcher believes about the membership: pure data, told the time by whoever calls.

The directory's state is soft: one that restarts knows nobody until the workers renew, and one whose links are hurt
drops workers whose renewals cannot pass. So only who has said that it leaves, or was replaced, is gone at once. Who
merely fell silent towards the directory is kept for a grace, and after it for as long as the watcher hears it itself.
Knows no sockets.
"""

import dataclasses
from collections.abc import Callable

from services.common.types import Membership, RefusedPair, WorkerInfo

# The revision of every start of a directory begins at random; one start will not count this far.
SAME_START_SPAN = 2**32

# Says of an incarnation whether the watcher hears it, by a way of its own.
Hears = Callable[[str], bool]


@dataclasses.dataclass(slots=True)
class _Kept:
    """A member that the directory does not list, and when to look at it again."""

    worker: WorkerInfo
    until: float


class MembershipView:
    """Merges snapshots over restarts of the directory and over silence towards it.

    Args:
        grace_s: how long a member that fell silent, or is of an earlier start, is kept without a sign of it.
        hears: asked when a grace ends; one that is heard gets another.
    """

    def __init__(self, grace_s: float, hears: Hears) -> None:
        self._grace_s = grace_s
        self._hears = hears
        self._latest: Membership | None = None
        self._kept: dict[str, _Kept] = {}
        self._kept_pairs: tuple[RefusedPair, ...] = ()

    def update(self, snapshot: Membership, now: float) -> Membership:
        """Takes a snapshot from the directory; gives what to believe now."""
        believed = self.current(now)
        listed = {worker.worker_id for worker in snapshot.workers}
        missing = [worker for worker in believed.workers if worker.worker_id not in listed]
        until = now + self._grace_s
        if self._latest is None or not _is_same_start(self._latest, snapshot):
            self._kept = {worker.worker_id: _Kept(worker, until) for worker in missing}
        else:
            silent = [worker for worker in missing if self._is_silent(worker, self._latest, snapshot)]
            self._kept = {
                worker.worker_id: self._kept.get(worker.worker_id) or _Kept(worker, until) for worker in silent
            }
        self._kept_pairs = believed.refused_pairs
        self._latest = snapshot
        return self.current(now)

    def current(self, now: float) -> Membership:
        """What to believe now; empty before the first snapshot."""
        latest = dataclasses.replace(self._latest or Membership(), expired=())
        self._look_again(now)
        if not self._kept:
            return latest
        kept = [one.worker for one in self._kept.values()]
        workers = sorted((*latest.workers, *kept), key=lambda worker: worker.worker_id)
        known = {(pair.prefill_worker_id, pair.decode_worker_id) for pair in latest.refused_pairs}
        pairs = [
            pair
            for pair in self._kept_pairs
            if (pair.prefill_worker_id, pair.decode_worker_id) not in known
            and (pair.prefill_worker_id in self._kept or pair.decode_worker_id in self._kept)
        ]
        return dataclasses.replace(latest, workers=tuple(workers), refused_pairs=(*latest.refused_pairs, *pairs))

    def next_change(self) -> float | None:
        """When `current` may change by itself, because a grace ends."""
        return min((one.until for one in self._kept.values()), default=None)

    def _is_silent(self, worker: WorkerInfo, before: Membership, snapshot: Membership) -> bool:
        """Whether a member that is not listed may live; of an earlier start's members this start knows nothing."""
        if worker.incarnation in snapshot.expired:
            return True
        return worker.worker_id in self._kept and worker.incarnation not in before.expired

    def _look_again(self, now: float) -> None:
        """Lets go of those whose grace has ended, unless they are heard."""
        for worker_id, one in list(self._kept.items()):
            if now < one.until:
                continue
            if self._hears(one.worker.incarnation):
                one.until = now + self._grace_s
            else:
                del self._kept[worker_id]


def _is_same_start(earlier: Membership, later: Membership) -> bool:
    return 0 <= later.revision - earlier.revision < SAME_START_SPAN
