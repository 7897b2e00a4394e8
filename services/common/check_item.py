"""What a deep check of a worker tells."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """One thing that was tried: `error` is the class of what went wrong, empty where it works.

    `latency_ns` is how long the trial took; `age_ns` how old the oldest one in flight is, for what can be in flight.
    """

    name: str
    latency_ns: int = 0
    age_ns: int = 0
    error: str = ""
    message: str = ""
