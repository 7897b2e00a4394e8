"""Rows of the matrix about load: storms, full pools, scaling, upgrades, slow peers and clients, overload.

F11, F15, F19–F21, F23, F24.
"""

from tests.fault import crowd_faults, load_faults
from tests.fault.evidence import OK, Part
from tests.fault.phases import IDLE, LOADED_DECODE
from tests.fault.scenario import Expectation, Load, Scenario, Topology

SOME_MOVES = (0, 3)
STEADY = Load(subjects=2, companions=4, max_tokens=48, deadline_s=60.0, subject_deadline_s=60.0)

GRACEFUL = Expectation(exits=(0,), moves=SOME_MOVES, are_gaps_judged=False)
FEW = 6

F11 = [
    Scenario(
        row="F11",
        name="four waves of 300 requests are cancelled",
        phase=IDLE,
        fault=load_faults.storm,
        load=Load(subjects=0, companions=4, max_tokens=24),
        # The waves come one after the other, long after the first one did.
        expect=Expectation(
            statuses={Part.SUBJECT: (OK, "CANCELLED")}, moved_within_s=float("inf"), are_gaps_judged=False
        ),
        is_slow=True,
    )
]

# Blocks as small as those of the simulation, and time enough for one request after the other.
PATIENT_S = 120.0
_SMALL = {"block-size": "4", "max-model-len": str(4 * crowd_faults.FULL_POOL), "queue-ttl-s": str(PATIENT_S)}
_FULL = {"num-blocks": str(crowd_faults.FULL_POOL)}

F15 = [
    Scenario(
        row="F15",
        name=f"24 requests where the pool of {' and of '.join(full)} takes one",
        phase=IDLE,
        fault=crowd_faults.crowd(full[0]),
        topology=Topology(flags={role: _SMALL | (_FULL if role in full else {}) for role in ("prefill", "decode")}),
        load=Load(subjects=0, companions=0, deadline_s=PATIENT_S, subject_deadline_s=PATIENT_S),
        expect=Expectation(are_gaps_judged=False),
    )
    for full in (("prefill",), ("decode",), ("prefill", "decode"))
]

F19 = [
    Scenario(
        row="F19",
        name="prefill and decode go from 1 worker to 3 and back",
        phase=LOADED_DECODE,
        fault=load_faults.scale_up_and_down,
        topology=Topology(prefill=1, decode=1),
        load=STEADY,
        expect=GRACEFUL,
    ),
    *(
        Scenario(
            row="F19",
            name=f"{changes} times a worker joins or leaves at random",
            phase=LOADED_DECODE,
            fault=load_faults.churn(changes),
            load=STEADY,
            expect=GRACEFUL,
            topology=Topology(prefill=1, decode=1),
            is_slow=changes > FEW,
        )
        for changes in (FEW, 20)
    ),
]

F20 = [
    Scenario(
        row="F20",
        name="every worker is replaced by one of the next version",
        phase=LOADED_DECODE,
        fault=load_faults.roll,
        load=STEADY,
        expect=GRACEFUL,
    )
]

F21 = [
    Scenario(
        row="F21",
        name=f"a {role} worker is 10 times slower",
        phase=IDLE,
        fault=load_faults.slow(role),
        load=Load(subjects=0, companions=0, max_tokens=24, deadline_s=60.0),
        expect=Expectation(are_gaps_judged=False),
    )
    for role in ("prefill", "decode")
]

F23 = [
    Scenario(
        row="F23",
        name="a client stops reading",
        phase=IDLE,
        fault=crowd_faults.stop_reading,
        topology=Topology(flags={"frontend": {"slow-reader-timeout-s": str(crowd_faults.READ_LIMIT_S)}}),
        load=Load(subjects=0, companions=6),
        expect=Expectation(),
    )
]

F24 = [
    Scenario(
        row="F24",
        name="three times the load, most of it of low priority",
        phase=IDLE,
        fault=load_faults.overload,
        topology=Topology(flags={"frontend": {"max-running-requests": "8", "max-waiting-requests": "64"}}),
        load=Load(subjects=0, companions=0, max_tokens=24, deadline_s=60.0),
        expect=Expectation(statuses={Part.COMPANION: (OK, "RESOURCE_EXHAUSTED")}, are_gaps_judged=False),
    )
]
