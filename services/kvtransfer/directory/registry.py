"""Membership with leases: pure data, told the time by whoever calls.

A worker is known by its id; its incarnation says which start of it is meant:

    absent ──register──▶ member ──renew (same incarnation)──▶ member
      ▲                    │  └──register (new incarnation)──▶ member, the old incarnation is replaced for good
      └──lease ended, or deregistered by its own incarnation──┘

Of those whose lease ended the last incarnation is remembered until it deregisters or its worker registers again: they
fell silent, which watchers may know better. Knows neither clocks, sockets nor protobuf.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.errors import FieldViolation, InvalidRequest, Overloaded
from services.common.types import KvLayout, Membership, RefusedPair, Tier, WorkerInfo

MAX_MEMBERS = 1024
MAX_REFUSED_PAIRS = 4096
MAX_REPLACED = 16

Incompatibility = Callable[[KvLayout, KvLayout], str | None]


@dataclass(slots=True)
class _Member:
    """A registered worker, when its lease ends, and which of its earlier incarnations were replaced."""

    worker: WorkerInfo
    lease_end: float
    replaced: list[str] = field(default_factory=list[str])


class Registry:
    """All members; `revision` grows with every change that watchers must see.

    Args:
        lease_s: how long a registration holds without renewal.
        incompatibility: says why a prefill and a decode layout cannot work together, or None.
        first_revision: random at each start, so that watchers can tell a restart from a change.
    """

    def __init__(
        self,
        lease_s: float,
        incompatibility: Incompatibility,
        *,
        first_revision: int = 0,
        max_members: int = MAX_MEMBERS,
    ) -> None:
        self.lease_s = lease_s
        self._incompatibility = incompatibility
        self._max_members = max_members
        self._revision = first_revision
        self._members: dict[str, _Member] = {}
        self._expired: dict[str, str] = {}  # incarnations by worker id, the latest to expire last
        self._refused: dict[tuple[str, str], RefusedPair] = {}
        self._snapshot: Membership | None = None

    @property
    def revision(self) -> int:
        """Counts changes from `first_revision` on."""
        return self._revision

    def register(self, worker: WorkerInfo, now: float) -> tuple[RefusedPair, ...]:
        """Joins, or renews; gives the refused pairs that contain the worker.

        Raises:
            InvalidRequest: the incarnation was replaced by a newer one.
            Overloaded: the directory is full.
        """
        member = self._members.get(worker.worker_id)
        if member is None:
            if len(self._members) >= self._max_members:
                message = f"the directory holds {self._max_members} workers, as many as it may"
                raise Overloaded(f"{message}; run another one for another deployment", retry_after_s=self.lease_s)
            self._members[worker.worker_id] = _Member(worker, now + self.lease_s)
            self._expired.pop(worker.worker_id, None)
            self._change(worker)
        elif worker.incarnation in member.replaced:
            raise InvalidRequest(
                FieldViolation("worker.incarnation", "was replaced by a newer start of this worker id; ids must differ")
            )
        else:
            if worker.incarnation != member.worker.incarnation:
                member.replaced = [*member.replaced, member.worker.incarnation][-MAX_REPLACED:]
            is_changed = worker != member.worker
            member.worker, member.lease_end = worker, now + self.lease_s
            if is_changed:
                self._change(worker)
        return tuple(pair for key, pair in sorted(self._refused.items()) if worker.worker_id in key)

    def deregister(self, worker_id: str, incarnation: str) -> bool:
        """Leaves; False, and nothing happens, unless this very incarnation is the member, or was until it expired."""
        if self._expired.get(worker_id) == incarnation:
            del self._expired[worker_id]
            self._revise()
            return True
        member = self._members.get(worker_id)
        if member is None or member.worker.incarnation != incarnation:
            return False
        self._drop(worker_id)
        return True

    def expire(self, now: float) -> tuple[WorkerInfo, ...]:
        """Drops the members whose leases have ended, and gives them."""
        gone = tuple(member.worker for member in self._members.values() if member.lease_end <= now)
        for worker in gone:
            self._expired[worker.worker_id] = worker.incarnation
            self._drop(worker.worker_id)
        for worker_id in list(self._expired)[: -self._max_members]:
            del self._expired[worker_id]
        return gone

    def renew_all(self, now: float) -> None:
        """Starts every lease anew: nobody could renew while the directory itself stood still."""
        for member in self._members.values():
            member.lease_end = now + self.lease_s

    def next_expiry(self) -> float | None:
        """When the next lease ends, unless it is renewed."""
        return min((member.lease_end for member in self._members.values()), default=None)

    def membership(self) -> Membership:
        """Everybody, ordered by worker id; the refused pairs are cut at a bound."""
        if self._snapshot is None:
            workers = tuple(member.worker for _, member in sorted(self._members.items()))
            refused = tuple(pair for _, pair in sorted(self._refused.items())[:MAX_REFUSED_PAIRS])
            self._snapshot = Membership(
                revision=self._revision, workers=workers, refused_pairs=refused, expired=tuple(self._expired.values())
            )
        return self._snapshot

    def stats(self) -> dict[str, int]:
        """Members by tier, and refused pairs."""
        tiers = [member.worker.tier for member in self._members.values()]
        return {
            "prefill_workers": tiers.count(Tier.PREFILL),
            "decode_workers": tiers.count(Tier.DECODE),
            "colocated_workers": tiers.count(Tier.COLOCATED),
            "refused_pairs": len(self._refused),
        }

    def _drop(self, worker_id: str) -> None:
        del self._members[worker_id]
        self._forget_pairs(worker_id)
        self._revise()

    def _change(self, worker: WorkerInfo) -> None:
        self._forget_pairs(worker.worker_id)
        for member in self._members.values():
            self._check_pair(worker, member.worker)
            self._check_pair(member.worker, worker)
        self._revise()

    def _check_pair(self, prefill: WorkerInfo, decode: WorkerInfo) -> None:
        """Workers of different models never meet, so only those of one model are compared."""
        if prefill.tier is not Tier.PREFILL or decode.tier is not Tier.DECODE or prefill.model != decode.model:
            return
        reason = self._incompatibility(prefill.layout, decode.layout)
        if reason is not None:
            pair = RefusedPair(prefill_worker_id=prefill.worker_id, decode_worker_id=decode.worker_id, reason=reason)
            self._refused[prefill.worker_id, decode.worker_id] = pair

    def _forget_pairs(self, worker_id: str) -> None:
        self._refused = {key: pair for key, pair in self._refused.items() if worker_id not in key}

    def _revise(self) -> None:
        self._revision += 1
        self._snapshot = None
