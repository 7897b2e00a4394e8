"""Where the tokens of a request go, if not over its own call."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A watch, and what the request's tokens bear there."""

    watch_id: str
    key: int
