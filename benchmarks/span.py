"""A range of lengths, such as 128 or 64:512. Pure."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Token counts from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """One of them, each as likely."""
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def parse_span(text: str) -> Span:
    """Reads a count, or two with a colon between them.

    Raises:
        ValueError: it is neither, a count is below 1, or the second is below the first.
    """
    first, colon, second = text.partition(":")
    try:
        span = Span(int(first), int(second if colon else first))
    except ValueError:
        raise ValueError(f"{text!r} is neither a count such as 128 nor a range such as 64:512") from None
    if not 1 <= span.low <= span.high:
        raise ValueError(f"{text!r} must have 1 <= low <= high")
    return span
