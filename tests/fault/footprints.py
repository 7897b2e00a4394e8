"""How much processes may grow while faults come and go. Pure."""

from collections.abc import Iterator

from tests.fault.checks import SLACK
from tests.fault.evidence import Snapshot

# Of one process between two rests; allocators and interpreters keep a little.
GROWTH = 1.15
GROWTH_BYTES = 24 * 2**20
# The first is taken before there was load, and memory grows with the first of it.
LEAST_FOOTPRINTS = 3


def growth(footprints: list[Snapshot]) -> Iterator[str]:
    """Who of those that lived through it all grew too much, from after the first round to the end."""
    if len(footprints) < LEAST_FOOTPRINTS:
        return
    first, last = footprints[1], footprints[-1]
    for name, after in last.items():
        before = first.get(name)
        if before is None or before.incarnation != after.incarnation:
            continue
        for what in ("descriptors", "threads"):
            if getattr(after, what) > getattr(before, what) + SLACK:
                yield f"{name}: {getattr(before, what)} -> {getattr(after, what)} {what}"
        if after.memory_bytes > before.memory_bytes * GROWTH + GROWTH_BYTES:
            yield f"{name} grew: {before.memory_bytes >> 20} -> {after.memory_bytes >> 20} MiB"
