"""The rows of the matrix as scenarios; each phase is a case of its own."""

from tests.fault import faults
from tests.fault.evidence import Part
from tests.fault.phases import AFTER_TRANSFER, DECODE_PHASES, EVERY_PHASE, PREFILL_PHASES
from tests.fault.rows_load import F11, F15, F19, F20, F21, F23, F24
from tests.fault.rows_network import F12
from tests.fault.rows_processes import F3, F4, F5, F6, F7, F8, F26
from tests.fault.rows_setup import F22
from tests.fault.rows_transfers import F13, F14
from tests.fault.scenario import Expectation, Load, Scenario

F1 = [
    Scenario(
        row="F1",
        name="SIGKILL of a prefill worker",
        phase=phase,
        fault=faults.kill_holder,
        expect=Expectation(moves=(0, 0) if phase is AFTER_TRANSFER else (1, 1)),
    )
    for phase in PREFILL_PHASES
]

F2 = [
    Scenario(
        row="F2",
        name="SIGKILL of a decode worker",
        phase=phase,
        fault=faults.kill_holder,
        expect=Expectation(moves=(1, 1)),
    )
    for phase in DECODE_PHASES
]

F9 = [
    Scenario(
        row="F9",
        name="cancelled by the client",
        phase=phase,
        fault=faults.cancel,
        expect=Expectation(statuses={Part.SUBJECT: ("CANCELLED",)}),
    )
    for phase in EVERY_PHASE
]

F10 = [
    Scenario(
        row="F10",
        name="deadline expires",
        phase=phase,
        fault=faults.let_time_run_out,
        load=Load(subject_deadline_s=2.0),
        expect=Expectation(statuses={Part.SUBJECT: ("DEADLINE_EXCEEDED",)}),
    )
    for phase in EVERY_PHASE
]

ROWS = (F1, F2, F3, F4, F5, F6, F7, F8, F9, F10, F11, *F12, F13, F14, F15, F19, F20, F21, *F22, F23, F24, F26)
SIMULATED = [scenario for row in ROWS for scenario in row if not scenario.is_real_only]
REAL = [cases for row in ROWS if (cases := [scenario for scenario in row if not scenario.is_simulated_only])]
