"""Dataclasses as dicts."""

import dataclasses

from services.common.flat import flat
from services.common.types import Load, SizedTime, StageTimes


def test_what_is_flat_is_as_asdict_gives_it() -> None:
    """Names and order too."""
    stages = StageTimes(queue_ns=1, total_ns=9)
    assert list(flat(stages).items()) == list(dataclasses.asdict(stages).items())


def test_dataclasses_inside_stay_what_they_are() -> None:
    """Whoever wants them otherwise says so."""
    load = Load(step_times=(SizedTime(1, 2),))
    assert flat(load)["step_times"] is load.step_times
