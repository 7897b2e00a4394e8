"""Rows of the matrix about the network (F12), on real processes alone: each fault on a control and on a data link."""

import itertools

from tests.fault.cluster_links import CONTROL, DATA
from tests.fault.network_faults import KINDS, hurt_link_of_directory, hurt_link_of_holder
from tests.fault.phases import IDLE, LOADED_DECODE, LOADED_PREFILL
from tests.fault.scenario import Expectation, Load, Phase, Scenario, Topology
from tests.harness.link import BROKEN

# Ejections grow with each fault, and no row waits for a minute until its worker is tried again.
TOPOLOGY = Topology(is_proxied=True, flags={"frontend": {"eject-longest-s": "5"}})
LOAD = Load(subjects=4, companions=6, max_tokens=48)
# Found by three missed heartbeats, or by a message that does not come within 1.5 s; then the request is done again.
FOUND_S = {CONTROL: 4.0, DATA: 4.0}


def row(kind: str, *phases: Phase) -> list[Scenario]:
    """Every fault on one link of the worker that holds the subjects, in one phase after the other."""
    return [
        Scenario(
            row=f"F12 {kind} link",
            name=f"{what}, {phase.tier.value} worker",
            phase=phase,
            fault=hurt_link_of_holder(kind, how),
            topology=TOPOLOGY,
            load=LOAD,
            expect=Expectation(moves=(0, 3), moved_within_s=FOUND_S[kind]),
            is_real_only=True,
        )
        for (what, how), phase in zip(KINDS.items(), itertools.cycle(phases), strict=False)
    ]


DIRECTORY_ROW = [
    Scenario(
        row="F12 directory's link",
        name=f"{what} until the leases end",
        phase=IDLE,
        fault=hurt_link_of_directory(how),
        topology=TOPOLOGY,
        load=LOAD,
        expect=Expectation(),
        is_real_only=True,
    )
    for what, how in BROKEN.items()
    if what in ("refuse", "black hole of one direction", "black hole of the other direction")
]

F12 = [row(CONTROL, LOADED_PREFILL, LOADED_DECODE), row(DATA, LOADED_PREFILL), DIRECTORY_ROW]
