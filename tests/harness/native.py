"""Our own kernels for tests, built once for the machine."""

import functools
import shutil

from services.engine.native.kernels import Kernels


@functools.cache
def kernels_or_none() -> Kernels | None:
    """The kernels; None only where no compiler is installed."""
    return Kernels() if shutil.which("c++") else None
