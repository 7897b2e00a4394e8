"""Starts a frontend: `python -m services.frontend`."""

import sys
from collections.abc import Sequence

from services.common.lifecycle import launch
from services.frontend.config import ENV_PREFIX, PROG, FrontendSettings
from services.frontend.server import FrontendProcess


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the frontend until a signal ends it; gives the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return launch(FrontendSettings, FrontendProcess, prog=PROG, env_prefix=ENV_PREFIX, argv=arguments)


if __name__ == "__main__":
    sys.exit(main())
