"""Who is turned away where a line is full: the last in it, however long it has stood there. Pure."""

from collections.abc import Callable, Sequence
from typing import TypeVar

W = TypeVar("W")


def turned_away(line: Sequence[W], newcomer: W, fits: Callable[[int], bool]) -> list[W]:
    """Who must leave so that the rest fits; the last one first.

    That is the newcomer alone, where those before it leave no room for it: nobody is displaced for nothing.

    Args:
        line: Who waits, in order, the newcomer among them.
        newcomer: Who came last; the others fit without it.
        fits: Whether there is room for so many of the line, from its front; where there is, there is for fewer.
    """
    if not fits(line.index(newcomer) + 1):
        return [newcomer]
    kept = len(line)
    while not fits(kept):
        kept -= 1
    return list(reversed(line[kept:]))
