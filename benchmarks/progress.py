"""The progress bar of every benchmark: on a terminal only, and on standard error."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")


def make_progress() -> Progress:
    """A bar for each task; use it as a context manager."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def tracked(title: str, items: Sequence[T]) -> Iterator[T]:
    """The items, with a bar that moves on after each."""
    with make_progress() as progress:
        yield from progress.track(items, description=title)
