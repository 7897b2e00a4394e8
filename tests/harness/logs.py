"""Puts logging back as it was, for tests that configure it."""

import contextlib
import logging
from collections.abc import Generator

import structlog


@contextlib.contextmanager
def restored_logging() -> Generator[None]:
    """Restores structlog and the root logger afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()
