"""A prefill process whose channels deliver zeros: the negative control of every test of the split.

    python -m tests.harness.zeroing_prefill FLAGS

It is the real process with one part swapped: a transport that zeroes every message but the probe.
"""

import sys

from services.common.lifecycle import launch, leave
from services.common.types import Tier
from services.kvtransfer.transport.gloo import open_gloo
from services.prefill.config import ENV_PREFIX, PROG, PrefillSettings
from services.prefill.server import PrefillTier
from services.worker.process import WorkerProcess
from tests.harness.faulty_transport import Fault, FaultPlan, faulty

ZEROING = {"gloo": faulty(open_gloo, FaultPlan(always=Fault.ZERO))}


def build(settings: PrefillSettings) -> WorkerProcess:
    """The process, not started."""
    return WorkerProcess(settings, Tier.PREFILL, lambda parts: PrefillTier(settings, parts, ZEROING))


if __name__ == "__main__":
    leave(launch(PrefillSettings, build, prog=PROG, env_prefix=ENV_PREFIX, argv=sys.argv[1:]))
