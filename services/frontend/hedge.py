"""Runs a late request over a second route, and goes on with whichever speaks first."""

import asyncio
from collections.abc import Callable

from services.frontend.legs import Legs
from services.frontend.releases import TicketReleases

# A first token is late where it takes a multiple of what this share of the latest requests took.
HEDGED_SHARE = 0.95


async def leader(
    first: Legs, open_second: Callable[[], Legs | None], patience_s: float | None, releases: TicketReleases
) -> Legs:
    """The legs to go on with: `first`, unless it is silent for `patience_s` seconds and the second is quicker then.

    `open_second` gives legs that its caller closes, or None where there is nothing to try; `patience_s` None waits for
    ever. The slower legs are stopped at once, on their workers, too. Legs that fail do not win while others run.

    Cancel: safe; the caller closes all legs.
    """
    if patience_s is None or await first.begin(patience_s) is not None:
        return first
    second = open_second()
    if second is None:
        return first
    faster = await _first_to_speak(first, second)
    slower = second if faster is first else first
    slower.stop(releases)
    return faster


async def _first_to_speak(first: Legs, second: Legs) -> Legs:
    """Both failed: the first, whose failure is the request's."""
    waits = {asyncio.ensure_future(legs.begin()): legs for legs in (first, second)}
    pending = set(waits)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winners = [legs for wait, legs in waits.items() if wait in done and wait.result()]
            if winners:
                return winners[0]
        return first
    finally:
        for wait in waits:
            wait.cancel()
