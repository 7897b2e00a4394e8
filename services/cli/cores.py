"""Divides this machine's cores between workers.

Two OpenMP pools on the same cores slow each other down by an order of magnitude, so each worker on CPU gets cores of
its own. Knows nothing of processes; only `ordered_cores` asks the operating system.
"""

import pathlib
from collections.abc import Sequence

from services.common.affinity import available_cpus

_TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")


def ordered_cores() -> list[int]:
    """Cores that this process may use, hardware threads of one core and cores of one package beside each other."""
    return sorted(available_cpus(), key=lambda core: (_fact(core, "physical_package_id"), _fact(core, "core_id"), core))


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


def spell(cores: Sequence[int]) -> str:
    """Cores as `--cpus` takes them, such as `0-3,6`."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _fact(core: int, name: str) -> int:
    """One number that Linux tells about a core; 0 where it does not."""
    try:
        return int((_TOPOLOGY / f"cpu{core}" / "topology" / name).read_text())
    except (OSError, ValueError):
        return 0
