"""Tells the ejections how the legs of one route went: for each worker, and for the pair between which KV moves."""

import time

from services.common.errors import BatonError, PeerError, PermissionDenied, Unauthenticated
from services.common.log import get_logger
from services.common.types import WorkerInfo
from services.frontend.member import Member
from services.frontend.routing.blame import Blame, blame
from services.frontend.routing.ejection import Suspect

_log = get_logger(__name__)


class Outcomes:
    """The suspects of one route; made when its legs begin. Thread: the event loop's only.

    The decode leg speaks for the pair. The first that is said of a worker counts, and nothing is held against one that
    has left or was restarted since.
    """

    def __init__(self, prefill: Member | None, decode: Member | None) -> None:
        self._prefill = prefill
        self._decode = decode
        self._judged: set[Member] = set()
        for member in filter(None, (prefill, decode)):
            for suspect in (member.worker.worker_id, *self._pair(member)):
                member.ejections.began(suspect, time.monotonic())

    def succeeded(self, member: Member) -> None:
        """The worker gave its answer, or delivered until it was stopped."""
        if self._is_open(member):
            for suspect in (member.worker.worker_id, *self._pair(member)):
                member.ejections.succeeded(suspect, time.monotonic())

    def failed(self, member: Member, error: BatonError) -> None:
        """The leg on this worker failed."""
        if not self._is_open(member):
            return
        pair = self._pair(member)
        whom = blame(error, member.calls.peer, has_source=bool(pair))
        suspects = {Blame.WORKER: (member.worker.worker_id,), Blame.PAIR: pair, Blame.NOBODY: ()}[whom]
        for suspect in suspects:
            if member.ejections.failed(suspect, time.monotonic()):
                _log.warning("ejected", suspect=suspect, error=type(error).__name__, message=error.message)

    def _is_open(self, member: Member) -> bool:
        is_open = member not in self._judged and not member.is_retired
        self._judged.add(member)
        return is_open

    def _pair(self, member: Member) -> tuple[Suspect, ...]:
        """The pair that the decode leg speaks for; empty for another leg, and where one worker is enough."""
        if member is not self._decode or self._prefill is None or self._prefill.is_retired:
            return ()
        return ((self._prefill.worker.worker_id, member.worker.worker_id),)


def named(error: BatonError, worker: WorkerInfo) -> BatonError:
    """Says in the error's details which worker it came from."""
    if isinstance(error, (Unauthenticated, PermissionDenied)):
        # It is this frontend whom the worker does not know; the client did nothing wrong.
        error = PeerError(f"worker {worker.worker_id} refuses this frontend; check its certificate and token")
    error.details.setdefault("worker_id", worker.worker_id)
    return error
