"""Divides cores and pins processes to them: two OpenMP pools on the same cores slow each other down 10 to 30 times."""

import os
from collections.abc import Sequence

from services.common.config import ConfigError


def parse_cpus(text: str) -> frozenset[int]:
    """Reads a list of cores such as "0,2-5"; empty gives the empty set.

    Raises:
        ConfigError: it is no such list.
    """
    cores: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"cpus {text!r}: {part!r} is neither a core nor a range; write such as 0,2-5")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def available_cpus() -> frozenset[int]:
    """Cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def pin_cpus(text: str) -> frozenset[int]:
    """Restricts the calling thread, and every thread it starts later, to the listed cores; gives the cores in force.

    Call it first thing, before a library starts its own threads.

    Raises:
        ConfigError: a core does not exist or may not be used.
    """
    cores = parse_cpus(text)
    if not cores:
        return available_cpus()
    unusable = cores - available_cpus()
    if unusable:
        allowed = ",".join(map(str, sorted(available_cpus())))
        raise ConfigError(f"cpus {text!r}: core {min(unusable)} may not be used; this process may use {allowed}")
    os.sched_setaffinity(0, cores)
    return cores


def divide(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Gives each worker neighbouring cores, disjoint while there are enough, else one core that it shares.

    The first workers get one core more where the division leaves a rest.

    Args:
        cores: at least one.
        workers: how many shares to make.
    """
    if workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    shares: list[tuple[int, ...]] = []
    start = 0
    for index in range(workers):
        count = len(cores) // workers + (index < len(cores) % workers)
        shares.append(tuple(cores[start : start + count]))
        start += count
    return shares
