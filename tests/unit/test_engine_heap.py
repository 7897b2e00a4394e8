"""What the C library does with memory that a model has freed."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import torch
from services.engine.heap import keep_freed_memory

assert keep_freed_memory()
torch.set_num_threads(1)

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults() for _ in range(12)]
print(found[0], found[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_not_fetched_again() -> None:
    """What tensors have used later ones find there: the system gives pages for the first ones alone."""
    env = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=env, check=True, capture_output=True, text=True, timeout=120
    )
    first, later = map(int, done.stdout.split())
    assert first > 4000
    assert later < 400
