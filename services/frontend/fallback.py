"""Says why a request did not take the usual way, prefill worker first, then decode worker. Pure."""

import enum

from services.common.types import Tier
from services.frontend.router import Route
from services.frontend.routing.candidate import Snapshot
from services.frontend.routing.shortcut import Shortcut


class Fallback(enum.StrEnum):
    """Why decode had to run a prompt itself; the values are labels of the metric and words of the answer."""

    NONE = "none"
    NO_PREFILL_WORKER = "no_prefill_worker"
    NO_COMPATIBLE_PREFILL_WORKER = "no_compatible_prefill_worker"
    NO_PROVEN_CHANNEL = "no_proven_channel"
    MIGRATION = "migration"


def fallback_of(route: Route, snapshot: Snapshot, *, is_begun: bool) -> Fallback:
    """The fallback that a route is, taken from a snapshot for a request that had tokens already, or not."""
    if is_begun:
        return Fallback.MIGRATION
    if route.prefill is not None or route.decode is None or route.decode.worker.tier is Tier.COLOCATED:
        return Fallback.NONE
    if route.shortcut is not Shortcut.NONE:
        return Fallback.NONE
    if snapshot.is_unproven:
        return Fallback.NO_PROVEN_CHANNEL
    prefills = [c for c in snapshot.candidates if c.worker.tier is Tier.PREFILL and not c.load.draining]
    return Fallback.NO_COMPATIBLE_PREFILL_WORKER if prefills else Fallback.NO_PREFILL_WORKER
