"""The row of the matrix about channels that are being built (F22), on real processes alone."""

from tests.fault import setup_faults
from tests.fault.phases import LOADED_DECODE
from tests.fault.scenario import Expectation, Load, Scenario
from tests.harness.pauses import Pause, Point

_CASES = (
    ("never joins", Point.JOIN, setup_faults.stand_still),
    ("leaves before it joins", Point.JOIN, setup_faults.kill),
    ("refuses where it said it was", Point.MEET, setup_faults.kill),
    ("is silent where it said it was", Point.MEET, setup_faults.freeze),
    ("is silent once it is connected", Point.SEND, setup_faults.freeze),
)

F22 = [
    [
        Scenario(
            row=f"F22 {tier}",
            name=f"a new {tier} worker {what}",
            phase=LOADED_DECODE,
            fault=fault(Pause(tier, point)),
            load=Load(subjects=2, companions=4, max_tokens=48, deadline_s=60.0, subject_deadline_s=60.0),
            expect=Expectation(exits=(0, -9), moves=(0, 3), are_gaps_judged=False),
            is_real_only=True,
        )
        for what, point, fault in _CASES
        # Before its probes a source would hold the KV of all other channels of its tier, too.
        if (tier, point) != ("prefill", Point.SEND)
    ]
    for tier in ("decode", "prefill")
]
