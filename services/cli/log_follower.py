"""Reads what is appended to a log file, as whole lines, while somebody else writes it."""

import pathlib

_MAX_READ_BYTES = 2**16


class LogFollower:
    """Gives the lines of a file that were not given before; a file that does not exist yet has none."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._offset = 0
        self._partial = b""

    def new_lines(self) -> list[str]:
        """Lines completed since the last call, without their ends; a bounded number at once."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read(_MAX_READ_BYTES)
        except OSError:
            return []
        self._offset += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]
