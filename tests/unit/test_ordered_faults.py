"""Orders to hurt messages reach the workers that they are for, and no others."""

from pathlib import Path

from tests.harness.faulty_transport import Fault
from tests.harness.ordered_faults import UNHURT, FaultsByFile, HurtOrder, OrdersByFile

KINDS = (Fault.ZERO,)


def taken(faults: FaultsByFile, count: int) -> list[Fault | None]:
    """What happens to the next messages of a channel, its probe first."""
    return [faults.take(position) for position in range(count + 1)]


def test_an_order_reaches_a_worker_by_file(tmp_path: Path):
    """Messages are hurt as often as was ordered, probes are not, and the test learns how many were."""
    orders, faults = OrdersByFile(tmp_path / "pauses"), FaultsByFile(tmp_path / "pauses", "prefill-0")
    assert taken(faults, 2) == [None, None, None]
    orders.give(HurtOrder(kinds=KINDS, most=1))
    assert taken(faults, 3) == [None, Fault.ZERO, None, None]
    orders.give(HurtOrder(kinds=KINDS, most=1))
    assert taken(faults, 2) == [None, Fault.ZERO, None]
    assert orders.num_hurt("prefill-0") == 2
    orders.give(HurtOrder(kinds=KINDS))
    orders.give(UNHURT)
    assert taken(faults, 20) == [None] * 21


def test_an_order_for_another_worker_is_not_obeyed(tmp_path: Path):
    """An order that names a worker is for that one alone."""
    orders, faults = OrdersByFile(tmp_path / "pauses"), FaultsByFile(tmp_path / "pauses", "prefill-0")
    orders.give(HurtOrder(worker="prefill-1"))
    assert taken(faults, 5) == [None] * 6
    assert orders.num_hurt("prefill-0") == 0


def test_a_share_is_hurt_by_its_seed(tmp_path: Path):
    """The same seed hurts the same messages of a worker, about as many as were ordered."""
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        OrdersByFile(folder / "pauses").give(HurtOrder(share=0.2, seed=3))
        found.append(taken(FaultsByFile(folder / "pauses", "prefill-0"), 500))
    assert found[0] == found[1]
    assert 60 < sum(fault is not None for fault in found[0]) < 140
