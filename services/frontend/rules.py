"""The numbers by which requests are run. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How requests are run.

    `buffer_events` messages of the workers are held for a slow client; a request moves at most `max_moves` times; a
    begun stream without a token for `stall_timeout_s` seconds counts as failed, 0 never; a first
    token that takes `hedge_factor` times as long as most of its size is hedged, 0 never.
    """

    buffer_events: int
    max_moves: int
    stall_timeout_s: float
    hedge_factor: float
