"""Whom a failed leg speaks against. Pure.

Counted are a worker that cannot be reached, breaks off or has a bug, and a pair between which no KV arrives. Not
counted is whatever a client can cause (bad input, a cancellation, a deadline) and whatever a healthy worker may say: no
room, leaving. A full worker is left out by its load report, and by each request that it has refused.
"""

import enum

from services.common.errors import (
    BatonError,
    HandoffError,
    Internal,
    PeerError,
    PeerUnreachable,
    TicketExpired,
    TicketUnknown,
)


class Blame(enum.Enum):
    """Who is at fault."""

    NOBODY = "nobody"
    WORKER = "worker"
    PAIR = "pair"


def blame(error: BatonError, peer: str, *, has_source: bool) -> Blame:
    """Judges the failure of one leg.

    `peer` is the name under which its worker was called; `has_source` is true of a leg that fetches from another
    worker, and then a peer that cannot be reached may be that one.
    """
    if isinstance(error, Internal):
        return Blame.WORKER
    if isinstance(error, PeerUnreachable):
        is_own = not has_source or error.details.get("peer") == peer
        return Blame.WORKER if is_own else Blame.PAIR
    if isinstance(error, TicketExpired | TicketUnknown):
        return Blame.NOBODY  # a decode worker that is full comes late, and so does one whose prompt was withdrawn
    if isinstance(error, HandoffError | PeerError):
        return Blame.PAIR if has_source else Blame.WORKER
    return Blame.NOBODY
