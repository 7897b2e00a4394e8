"""All workers that this frontend may route to, kept up to date from a source of membership.

A worker joins when the source lists it, is routed to once it reports its load, and leaves when the source no longer
lists it (the source itself bridges restarts of the directory). A new incarnation replaces the old one at once, and ends
what was still asked of that. Requests that run on a worker that left finish there; its channel is closed after the last
one.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

from services.common.changes import Changes
from services.common.errors import NoWorker
from services.common.following import follow
from services.common.log import get_logger
from services.common.types import Membership, Tier, WorkerInfo
from services.frontend.connection import Connection
from services.frontend.member import Member
from services.frontend.member_rules import MemberRules
from services.frontend.pairs import Pair, Pairs, Usable
from services.frontend.request import ServedModel
from services.frontend.routing.candidate import Candidate, Snapshot
from services.frontend.routing.ejection import Ejections

_log = get_logger(__name__)


# Yields the membership, now and after each change; when it ends or raises it is called again.
MemberSource = Callable[[], AsyncGenerator[Membership, None]]


class Members:
    """Owns a `Member` for each worker of one model, and the record of which ones fail.

    `changes` is notified when a worker comes, goes, begins to drain or proves a channel, not with every load.
    Thread: the event loop's only.
    """

    def __init__(
        self,
        source: MemberSource,
        model: str,
        connect: Callable[[WorkerInfo], Connection],
        *,
        rules: MemberRules,
    ) -> None:
        self._watch_source = source
        self._model = model
        self._connect = connect
        self._rules = rules
        self._pairs = Pairs(rules.thresholds.pair_grace_s)
        self._overdue: frozenset[Pair] = frozenset()
        self.changes = Changes()
        self._members: dict[str, Member] = {}
        self.ejections = Ejections(rules.ejection)
        self._refused: frozenset[tuple[str, str]] = frozenset()
        self._retired: set[Member] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._follow_task: asyncio.Task[None] | None = None
        self._others: set[str] = set()
        self._is_closed = False

    def start(self) -> None:
        """Begins to follow the source."""
        self._follow_task = asyncio.create_task(follow(self._watch_source, self._apply), name="follow-membership")

    def snapshot(self) -> Snapshot:
        """What the router decides on."""
        members = list(self._members.values())
        found = (member.candidate() for member in sorted(members, key=lambda member: member.worker.worker_id))
        candidates = tuple(c for c in found if c is not None)
        live = {c.worker_id: c.worker.tier for c in candidates if not c.load.draining}
        now = time.monotonic()
        out = self.ejections.out(live, now)
        suspects = {member.worker.worker_id for member in members if member.is_suspect}
        pairs = self._usable_pairs(candidates, now)
        return Snapshot(
            candidates=candidates,
            refused=pairs.closed | {pair for pair in out if not isinstance(pair, str)},
            ejected=frozenset(worker_id for worker_id in out if isinstance(worker_id, str)) | suspects,
            is_unproven=pairs.is_blocked,
        )

    def member(self, candidate: Candidate) -> Member:
        """The member behind a candidate of a snapshot taken in the same step of the loop."""
        return self._members[candidate.worker.worker_id]

    def hears(self, incarnation: str) -> bool:
        """Whether this process of a worker sends reports."""
        return any(
            member.worker.incarnation == incarnation and member.is_reachable for member in self._members.values()
        )

    def max_model_len(self, snapshot: Snapshot) -> int:
        """Longest prompt plus output that some worker accepts, in tokens.

        Raises:
            NoWorker: nobody is there.
        """
        if not snapshot.candidates:
            raise NoWorker("no worker is alive and can be reached; try again later", retry_after_s=1.0)
        return max(candidate.worker.max_model_len for candidate in snapshot.candidates)

    def served(self) -> ServedModel:
        """The model and who serves it now."""
        candidates = self.snapshot().candidates
        tiers = [candidate.worker.tier for candidate in candidates]
        longest = max((candidate.worker.max_model_len for candidate in candidates), default=0)
        num_prefill = tiers.count(Tier.PREFILL)
        return ServedModel(
            name=self._model,
            max_model_len=longest,
            prefill_workers=num_prefill,
            decode_workers=len(tiers) - num_prefill,
        )

    def stats(self) -> dict[str, int]:
        """Members: all, reachable, those that finish what they have; tasks, watches of tokens. Any thread."""
        tokens = Counter[str]({"token_watches": 0, "watched_requests": 0})
        for member in [*self._members.values(), *self._retired]:
            tokens.update(member.calls.decode.stats())
        return {
            **tokens,
            "members": len(self._members),
            "members_reachable": sum(member.is_reachable for member in list(self._members.values())),
            "members_retired": len(self._retired),
            "members_closing": len(self._closing),
        }

    async def close(self) -> None:
        """Ends every watch and call and frees all channels."""
        self._is_closed = True
        self.changes.close()
        if self._follow_task is not None:
            self._follow_task.cancel()
            await asyncio.wait([self._follow_task])
        everyone = [*self._members.values(), *self._retired]
        self._members.clear()
        self._retired.clear()
        await asyncio.gather(*(member.close() for member in everyone), *self._closing)

    def _usable_pairs(self, candidates: Sequence[Candidate], now: float) -> Usable:
        pairs = self._pairs.usable(candidates, self._refused, now)
        for prefill, decode in sorted(pairs.overdue - self._overdue):
            _log.warning("pair_not_proven", prefill=prefill, decode=decode)
        self._overdue = pairs.overdue
        return pairs

    def _apply(self, membership: Membership) -> None:
        self._others &= {worker.worker_id for worker in membership.workers}
        listed = {worker.worker_id: worker for worker in membership.workers if self._is_ours(worker)}
        for worker_id in self._members.keys() - listed.keys():
            self._retire(worker_id)
            self.ejections.left(worker_id)
        for worker in listed.values():
            known = self._members.get(worker.worker_id)
            if known is None or known.worker.incarnation != worker.incarnation:
                self._join(worker)
        self._refused = frozenset((pair.prefill_worker_id, pair.decode_worker_id) for pair in membership.refused_pairs)
        self._changed()

    def _is_ours(self, worker: WorkerInfo) -> bool:
        if worker.model == self._model:
            return True
        if worker.worker_id not in self._others:
            self._others.add(worker.worker_id)
            _log.warning("worker_serves_another_model", worker_id=worker.worker_id, model=worker.model)
        return False

    def _join(self, worker: WorkerInfo) -> None:
        if worker.worker_id in self._members:
            self._members[worker.worker_id].lifeline.cut()  # another process answers there now
            self._retire(worker.worker_id)
            self.ejections.restarted(worker.worker_id, time.monotonic())
        _log.info("worker_joined", worker_id=worker.worker_id, tier=worker.tier.value, address=worker.address)
        member = Member(worker, self._connect(worker), self._changed, self.ejections, self._rules)
        self._members[worker.worker_id] = member
        member.start()

    def _retire(self, worker_id: str) -> None:
        member = self._members.pop(worker_id)
        member.retire()
        self._retired.add(member)
        _log.info("worker_left", worker_id=worker_id, incarnation=member.worker.incarnation)

    def _changed(self) -> None:
        """Lets go of whoever left and has nothing more to do here, and tells the watchers."""
        if self._is_closed:
            return
        for member in [member for member in self._retired if member.is_idle]:
            self._retired.discard(member)
            task = asyncio.create_task(member.close(), name=f"close-{member.worker.worker_id}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self.changes.notify()
