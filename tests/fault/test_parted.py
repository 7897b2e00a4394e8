"""F12 in network namespaces: what proxies cannot do, which is to lose every packet of one pair of processes."""

import subprocess
import sys

import pytest

from tests.harness.namespaces import INSIDE, are_possible

LIMIT_S = 300.0


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S + 30)
def test_a_pair_between_which_no_packet_passes():
    """Every request ends well over other pairs, C1-C7 hold, and the pair is used again once packets pass."""
    if not are_possible():
        pytest.skip("this machine does not let us make network namespaces")
    argv = [*INSIDE, sys.executable, "-m", "tests.fault.parted"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
