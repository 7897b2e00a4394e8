"""The version of this software."""

import functools
import importlib.metadata

UNKNOWN = "0.0.0+unknown"


@functools.cache
def version() -> str:
    """Version of the installed distribution; a source tree that was never installed has none."""
    try:
        return importlib.metadata.version("baton")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
