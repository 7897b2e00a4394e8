"""One point of a sweep. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """How many requests at once, and the tokens (prompt or context) of each."""

    batch: int
    tokens: int


def sweep(batches: tuple[int, ...], tokens: tuple[int, ...]) -> list[Case]:
    """Every batch with every length, short ones first."""
    return [Case(batch, each) for each in tokens for batch in batches]
