"""Starts the directory: `python -m services.kvtransfer.directory`."""

import sys
from collections.abc import Sequence

from services.common.lifecycle import launch
from services.kvtransfer.directory.config import ENV_PREFIX, PROG, DirectorySettings
from services.kvtransfer.directory.server import DirectoryProcess


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the directory until a signal ends it; gives the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return launch(DirectorySettings, DirectoryProcess, prog=PROG, env_prefix=ENV_PREFIX, argv=arguments)


if __name__ == "__main__":
    sys.exit(main())
