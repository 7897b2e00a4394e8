"""The workshop's only way to write to the terminal. It does not log, format or buffer."""

import sys


def say(line: str) -> None:
    """Writes one line to standard output at once, so that a redirected run can be followed."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
