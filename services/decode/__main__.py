"""Starts a decode process: python -m services.decode.

The only place that knows the other tier: the process may be asked to serve that one.
"""

import sys
from collections.abc import Sequence

from services.common.lifecycle import launch, leave
from services.decode.config import ENV_PREFIX, PROG, DecodeSettings
from services.decode.server import build
from services.prefill.server import ROLES


def main(argv: Sequence[str]) -> int:
    """Runs the process until a signal ends it; gives the exit code."""
    return launch(DecodeSettings, lambda settings: build(settings, ROLES), prog=PROG, env_prefix=ENV_PREFIX, argv=argv)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
