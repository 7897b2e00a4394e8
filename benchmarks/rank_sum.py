"""Measures how long two ranks take to add up a tensor: over memory and sockets as the engine does it, and over gloo.

    python -m benchmarks.rank_sum

Two processes, one thread each, on a core each where there are two.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from services.common.affinity import available_cpus, divide
from services.engine.tensor_parallel.group import RankGroup, exchange_bytes
from services.engine.tensor_parallel.link import link_pair
from services.engine.tensor_parallel.shared_memory import map_tensor, new_memory

ELEMENTS = (2048, 32 * 1024, 1024 * 1024)
TIMEOUT_S = 60.0
WARM_UPS = 20


def measure(add_up: Callable[[torch.Tensor], object], count: int) -> float:
    """Median of microseconds for one sum of `count` float32 elements."""
    tensor, times = torch.ones(count), list[float]()
    for _ in range(WARM_UPS + max(100, min(1000, 10**7 // count))):
        tensor.fill_(1.0)
        began = time.perf_counter()
        add_up(tensor)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UPS:]) * 1e6


def main() -> None:
    """Forks the second rank and prints what the first one sees."""
    torch.set_num_threads(1)
    ours, theirs = link_pair(0, 1)
    memory, store = new_memory("benchmark"), tempfile.mkstemp()[1]
    child = os.fork()
    rank = 0 if child else 1
    os.sched_setaffinity(0, divide(sorted(available_cpus()), 2)[rank])
    exchange = map_tensor(memory, (exchange_bytes(2),), torch.uint8)
    (theirs if rank == 0 else ours).release()
    group = RankGroup(rank, {1 - rank: ours if rank == 0 else theirs}, exchange, TIMEOUT_S)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S)
    )
    for count in ELEMENTS:
        memory_us, gloo_us = measure(group.all_reduce, count), measure(dist.all_reduce, count)
        if rank == 0:
            print(f"{count:>8} elements: {memory_us:7.0f} µs over memory, {gloo_us:7.0f} µs over gloo", flush=True)
    if rank == 1:
        os._exit(0)
    os.waitpid(child, 0)
    dist.destroy_process_group()
    os.unlink(store)


if __name__ == "__main__":
    main()
