"""Rows of the matrix about KV that is hurt on its way (F13, F14)."""

from tests.fault import transfer_faults
from tests.fault.evidence import OK, Part
from tests.fault.phases import IDLE, LOADED_PREFILL
from tests.fault.scenario import Expectation, Load, Scenario
from tests.harness.faulty_transport import HURTS, Fault

EITHER = (OK, "UNAVAILABLE", "DATA_LOSS")
SOME_MOVES = (0, 3)
PATIENT = Load(subjects=0, companions=0, deadline_s=60.0)
BROKEN = "sink_channels_aborted_total"
# A channel of its own breaks, and on a busy machine maybe one more, whose next message comes late.
ONCE = (1, 2)

F13 = [
    Scenario(
        row="F13",
        name=f"one message of KV: {kind.value}",
        phase=LOADED_PREFILL,
        fault=transfer_faults.hurt_message(kind),
        load=Load(subjects=4, companions=6, max_tokens=48),
        # A message that does not come is found by the limit of its receive; then the next channel has its own.
        expect=Expectation(moves=SOME_MOVES, moved_within_s=6.0, metrics={BROKEN: ONCE}),
        is_slow=kind is not Fault.CORRUPT,
    )
    for kind in HURTS
]

F14 = [
    Scenario(
        row="F14",
        name=f"{share:.0%} of the messages of KV are hurt, {requests} requests",
        phase=IDLE,
        fault=transfer_faults.hurt_share(share, requests),
        load=PATIENT,
        expect=Expectation(
            statuses={Part.COMPANION: EITHER, Part.PROBE: EITHER},
            metrics={BROKEN: (1, float("inf"))},
            are_gaps_judged=False,
        ),
        is_slow=requests <= 60,
        is_real_only=requests > 60,
    )
    for share, requests in ((0.2, 60), (0.05, 500))
]
