"""Rows of the matrix about processes that die, leave, come back or stand still (F3–F8, F26)."""

from tests.fault import faults
from tests.fault.evidence import OK, Part
from tests.fault.phases import IDLE, LOADED_DECODE, LOADED_PREFILL, MID_DECODE, MID_TRANSFER, QUEUED, TRANSFER_TO_DECODE
from tests.fault.scenario import Expectation, Load, Scenario, Topology

LOST = ("UNAVAILABLE",)
EITHER = (OK, *LOST)
MANY = Load(subjects=6, companions=6, max_tokens=48)
SOME_MOVES = (0, 3)

F3 = [
    Scenario(
        row="F3",
        name="SIGKILL of the frontend",
        phase=phase,
        fault=faults.kill_only_frontend,
        expect=Expectation(statuses={Part.SUBJECT: LOST, Part.COMPANION: LOST, Part.BLOCKER: LOST, Part.PROBE: EITHER}),
    )
    for phase in (QUEUED, MID_DECODE)
]

F4 = [
    Scenario(
        row="F4",
        name=f"SIGSTOP of a {phase.tier.value} worker for 10 s",
        phase=phase,
        fault=faults.freeze_holder,
        load=Load(deadline_s=60.0, subject_deadline_s=60.0),
        expect=Expectation(moves=(1, 3)),
    )
    for phase in (MID_TRANSFER, TRANSFER_TO_DECODE, MID_DECODE)
]

F5 = [
    Scenario(
        row="F5",
        name=f"SIGTERM of a {role}",
        phase=phase,
        fault=faults.drain(role),
        topology=Topology(frontend=2),
        load=MANY,
        expect=Expectation(exits=(0,), moves=SOME_MOVES, statuses={Part.PROBE: EITHER} if role == "frontend" else {}),
    )
    for role, phase in (("prefill", LOADED_PREFILL), ("decode", LOADED_DECODE), ("frontend", LOADED_DECODE))
]

F6 = [
    Scenario(
        row="F6",
        name="every worker is lost",
        phase=phase,
        fault=faults.lose_all_workers,
        expect=Expectation(
            statuses={Part.SUBJECT: EITHER, Part.COMPANION: EITHER, Part.PROBE: EITHER},
            moves=SOME_MOVES,
            refused_within_s=1.0,
            is_hinted=True,
            unready=frozenset({"frontend-0"}),
        ),
    )
    for phase in (IDLE, LOADED_DECODE)
]

F7 = [
    Scenario(
        row="F7",
        name=name,
        phase=phase,
        fault=fault,
        load=Load(companions=6, deadline_s=60.0, subject_deadline_s=60.0),
        expect=Expectation(moves=moves),
        is_simulated_only=fault is faults.jump_wall_clock,
    )
    for name, fault, phases, moves in (
        ("the directory is away and comes back", faults.restart_directory, (IDLE, LOADED_DECODE), (0, 0)),
        ("a worker dies while the directory is away", faults.lose_worker_unseen, (MID_TRANSFER, MID_DECODE), (1, 1)),
        ("the wall clock jumps", faults.jump_wall_clock, (LOADED_DECODE,), (0, 0)),
    )
    for phase in phases
]

F8 = [
    Scenario(
        row="F8",
        name=f"a {phase.tier.value} worker is restarted at its address",
        phase=phase,
        fault=faults.kill_holder_and_start_again,
        expect=Expectation(moves=(1, 1)),
    )
    for phase in (MID_TRANSFER, TRANSFER_TO_DECODE)
]

F26 = [
    Scenario(
        row="F26",
        name="SIGKILL of one of two frontends",
        phase=MID_DECODE,
        fault=faults.kill_first_frontend,
        topology=Topology(frontend=2),
        load=Load(subjects=4, companions=6),
        expect=Expectation(lost_with_frontend=LOST, moves=(0, 0)),
    )
]
