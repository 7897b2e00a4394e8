"""The cores of this machine in the order in which they are divided, and as flags spell them."""

import pathlib
from collections.abc import Sequence

from services.common.affinity import available_cpus

_TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")


def ordered_cores() -> list[int]:
    """Cores that this process may use, hardware threads of one core and cores of one package beside each other."""
    return sorted(available_cpus(), key=lambda core: (_fact(core, "physical_package_id"), _fact(core, "core_id"), core))


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
