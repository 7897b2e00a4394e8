"""What holds for every test: the same examples each time, and no fight over the cores."""

import os

import pytest
from hypothesis import settings

# Before anything imports torch: tests start engines in several processes and threads on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# gRPC's core reports every connection that a test cuts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# A property is tested with the same examples each time; how long one takes depends on the machine's load.
settings.register_profile("baton", derandomize=True, deadline=None)
settings.load_profile("baton")


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched files are looked at each time that their value is asked for."""
    monkeypatch.setattr("services.common.watched.LOOK_EVERY_S", 0.0)
