"""A prefill or decode process that a test can make stand still (see `pauses.py`), make slow, or hurt its KV.

    python -m tests.harness.paused_worker TIER FLAGS

It is the real process with its engine and its transports wrapped. The environment names the folder of the gates; the
version that the process says it has, where that is not its own; and whom to ask for proxies, where KV is to pass
through some of the test (see `proxy_desk.py`).
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, cast
from unittest import mock

from services.common.lifecycle import launch, leave
from services.common.types import Tier
from services.common.version import version
from services.decode import config as decode_config
from services.decode.server import DecodeTier
from services.kvtransfer.transport import available
from services.kvtransfer.transport.base import Transports
from services.prefill import config as prefill_config
from services.prefill.server import PrefillTier
from services.worker.process import Parts, WorkerProcess
from tests.harness.faulty_transport import faulty
from tests.harness.ordered_faults import FaultsByFile
from tests.harness.pauses import FOLDER_VARIABLE, FileGate, PausedEngine, paused_transports
from tests.harness.proxied_keys import through
from tests.harness.proxy_desk import asking_port_of
from tests.harness.slow_engine import SlowEngine, SlownessFiles

VERSION_VARIABLE = "BATON_TEST_VERSION"


def main(tier: Tier, argv: list[str]) -> int:
    """Runs the process; gives its exit code."""
    config: Any = prefill_config if tier is Tier.PREFILL else decode_config
    tier_class: Any = PrefillTier if tier is Tier.PREFILL else DecodeTier
    settings_class: Any = config.PrefillSettings if tier is Tier.PREFILL else config.DecodeSettings

    def build_tier(settings: Any, parts: Parts) -> Any:
        folder = Path(os.environ[FOLDER_VARIABLE])
        gate = FileGate(folder, tier.value, parts.info.worker_id)
        plan = FaultsByFile(folder, parts.info.worker_id)
        hurt = {name: faulty(opening, plan) for name, opening in _proxied(tier).items()}
        # The one table of transports that every part of the process looks them up in.
        cast(dict[str, Any], available.AVAILABLE).update(paused_transports(hurt, gate))
        slowness = SlownessFiles(folder)
        slow = SlowEngine(parts.engine, lambda: slowness.times(parts.info.worker_id))
        return tier_class(settings, dataclasses.replace(parts, engine=cast(Any, PausedEngine(slow, gate))))

    def build(settings: Any) -> WorkerProcess:
        return WorkerProcess(settings, tier, lambda parts: build_tier(settings, parts))

    told = os.environ.get(VERSION_VARIABLE) or version()
    with mock.patch("services.worker.process.version", return_value=told):
        return launch(settings_class, build, prog=config.PROG, env_prefix=config.ENV_PREFIX, argv=argv)


def _proxied(tier: Tier) -> Transports:
    """What every worker has, or gloo through proxies alone, of which the source decides."""
    port_of = asking_port_of()
    if port_of is None or tier is not Tier.PREFILL:
        return available.AVAILABLE
    return {"gloo": through(available.AVAILABLE["gloo"], port_of)}


if __name__ == "__main__":
    leave(main(Tier(sys.argv[1]), sys.argv[2:]))
