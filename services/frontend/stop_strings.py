"""Finds stop strings in text that comes in pieces.

Pure; knows nothing of tokens. Text that may be the beginning of a stop string is held back until it is certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """Text that is certain, and the stop string found right after it, if any."""

    text: str
    match: str = ""


class StopStrings:
    """Scans one choice's text.

    The first match is the one that ends first (the longest of those, if several end together), so the result does not
    depend on where the text was split. Holds back at most the longest stop string's length minus one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    @property
    def held(self) -> str:
        """Text seen but not yet certain."""
        return self._held

    def feed(self, text: str) -> Scan:
        """Takes the next piece; after a match nothing more may be fed."""
        if not self._stops:
            return Scan(text)
        seen = self._held + text
        found = self._first_match(seen)
        if found is not None:
            start, stop = found
            self._held = ""
            return Scan(seen[:start], stop)
        keep = self._undecided(seen)
        self._held = seen[len(seen) - keep :]
        return Scan(seen[: len(seen) - keep])

    def flush(self) -> str:
        """The text held back, at the end of the output."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, seen: str) -> tuple[int, str] | None:
        """Start and stop string of the match that ends first."""
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := seen.find(stop)) >= 0]
        if not ends:
            return None
        _, start, stop = min(ends)
        return start, stop

    def _undecided(self, seen: str) -> int:
        """Length of the longest end of `seen` that is a proper beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(seen)), 0, -1):
            if any(len(stop) > length and stop.startswith(seen[-length:]) for stop in self._stops):
                return length
        return 0
