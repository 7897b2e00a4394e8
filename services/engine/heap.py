"""How the C library hands memory out and takes it back while a model runs on CPU.

By default glibc returns what a layer frees to the system, and the next layer gets it back page by page, each filled
with zeros first: a tenth of a long prompt's time.
"""

import ctypes

_NEVER = 2**31 - 1  # bytes
# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
_OPTIONS = ((-8, 1), (-3, _NEVER), (-1, _NEVER))


def keep_freed_memory() -> bool:
    """Lets the process keep what it has used once, in one heap for all threads; False where the C library cannot.

    Call it before the threads that compute begin.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS)
