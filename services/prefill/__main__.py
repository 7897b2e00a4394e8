"""Starts a prefill process: python -m services.prefill.

The only place that knows the other tier: the process may be asked to serve that one.
"""

import sys
from collections.abc import Sequence

from services.common.lifecycle import launch, leave
from services.decode.server import ROLES
from services.prefill.config import ENV_PREFIX, PROG, PrefillSettings
from services.prefill.server import build


def main(argv: Sequence[str]) -> int:
    """Runs the process until a signal ends it; gives the exit code."""
    return launch(PrefillSettings, lambda settings: build(settings, ROLES), prog=PROG, env_prefix=ENV_PREFIX, argv=argv)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
