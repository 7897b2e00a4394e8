"""A value read from files, that follows them as they change: certificates, tokens.

Nobody is notified of a change; whoever asks for the value makes it look, at most every `LOOK_EVERY_S`. What cannot be
read or does not hold together (a file half written, a key that is not its certificate's) leaves the last good value.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from services.common.config import ConfigError
from services.common.log import get_logger

LOOK_EVERY_S = 0.5

T = TypeVar("T")
# What tells a file from its successor: inode, time of change and size; None where there is no file.
_Stamp = tuple[int, int, int] | None

_log = get_logger(__name__)


class Watched(Generic[T]):
    """The value that `load` makes of the files; `load` raises ConfigError where it cannot.

    Thread: any; who comes while another one reads the files gets the value as it was.

    Raises:
        ConfigError: the files are wrong from the start.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._reading = threading.Lock()
        self._stamps = self._look()
        self._looked_at = time.monotonic()
        self._value = load()
        self.reloads = 0
        self.failures = 0

    def current(self) -> T:
        """The value as the files are now, or as they last were when they made sense."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S and self._reading.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._reading.release()
        return self._value

    def _refresh(self) -> None:
        stamps = self._look()
        self._looked_at = time.monotonic()
        if stamps == self._stamps:
            return
        # Remembered also where they are wrong: a mistake is reported once, and looked at again when somebody mends it.
        self._stamps = stamps
        names = [str(path) for path in self._paths]
        try:
            self._value = self._load()
        except ConfigError as error:
            self.failures += 1
            _log.error("files_not_reloaded", files=names, error=str(error), kept="the last good ones")
        else:
            self.reloads += 1
            _log.info("files_reloaded", files=names)

    def _look(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
