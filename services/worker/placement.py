"""On which cores a worker's ranks run; two of them on the same cores slow each other down as two workers do."""

import os

from services.common.affinity import divide, pin_cpus

RankCores = tuple[tuple[int, ...], ...]


def place_ranks(cpus: str, num_ranks: int) -> RankCores:
    """Pins this process, which is rank 0, and gives the cores of each rank; none where it is the only one.

    Call it first thing, before a library starts its own threads.

    Args:
        cpus: Cores of the whole worker, as in its settings; empty: all that it may use.
        num_ranks: Ranks that share the model.

    Raises:
        ConfigError: a core does not exist or may not be used.
    """
    cores = pin_cpus(cpus)
    if num_ranks == 1:
        return ()
    shares = tuple(divide(sorted(cores), num_ranks))
    os.sched_setaffinity(0, shares[0])
    return shares
