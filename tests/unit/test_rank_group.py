"""How ranks meet in a step, and what becomes of it where one dies, hangs or fails."""

import pytest
import torch

from services.engine.tensor_parallel.group import EXCHANGE_BYTES, RankGroup
from services.engine.tensor_parallel.link import RankLost
from tests.harness.rank_threads import on_all, rank_groups


def part(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Whole numbers, so that sums are exact in every dtype."""
    return torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_all_ranks_get_the_sum(degree: int, dtype: torch.dtype) -> None:
    """For one element, for what fills the exchange, and for what goes through it in pieces; again and again."""
    room = EXCHANGE_BYTES // dtype.itemsize
    for count in (1, room, 2 * room + 3, 5):
        wanted = sum(part(rank, count, dtype=dtype) for rank in range(degree))
        sums = on_all(rank_groups(degree), lambda group, n=count: group.all_reduce(part(group.rank, n, dtype=dtype)))
        assert all(torch.equal(found, wanted) for found in sums)


def test_many_sums_in_a_row_do_not_mix() -> None:
    """No rank reads what another wrote for a later sum, however they overtake each other."""

    def work(group: RankGroup) -> list[float]:
        return [float(group.all_reduce(torch.full((7,), float(turn + group.rank)))[3]) for turn in range(600)]

    assert on_all(rank_groups(3), work) == [[3.0 * turn + 3 for turn in range(600)]] * 3


@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_rank_0_gets_all_columns_in_order(rows: int) -> None:
    """Also where the parts are not equally wide, or larger than the exchange."""
    sizes = [100, 101, 99]
    parts = [part(rank, 1, rows, size) for rank, size in enumerate(sizes)]
    gathered = on_all(rank_groups(3), lambda group: group.gather(parts[group.rank], sizes))
    assert torch.equal(gathered[0], torch.cat(parts, dim=-1))


def test_a_rank_that_dies_is_noticed_at_once() -> None:
    """Its sockets close; nobody waits for the deadline, which is longer than the test.

    Whom a rank misses first, the dead one or one that left because of it, is a matter of luck.
    """

    def work(group: RankGroup) -> None:
        if group.rank == 1:
            group.close()
            return
        group.all_reduce(torch.ones(3))

    first, _, third = on_all(rank_groups(3, timeout_s=3600.0), work)
    assert isinstance(first, RankLost)
    assert isinstance(third, RankLost)
    assert "is gone" in str(first)


def test_a_rank_that_does_not_come_is_given_up() -> None:
    """The deadline passes; the group says who did not come."""
    first, _ = on_all(rank_groups(2, timeout_s=0.05), lambda g: g.rank == 0 and g.all_reduce(torch.ones(3)))
    assert isinstance(first, RankLost)
    assert "rank 1 does not answer in time" in str(first)


def test_ranks_out_of_step_do_not_add_up_what_does_not_belong_together() -> None:
    """One rank has missed a meeting: an error, no sum."""

    def work(group: RankGroup) -> None:
        if group.rank == 1:
            group.begin(b"")
        group.all_reduce(torch.ones(3))

    first, _ = on_all(rank_groups(2, timeout_s=1.0), work)
    assert isinstance(first, RankLost)
    assert "sent STEP" in str(first)


def test_a_message_is_taken_whole_however_it_comes() -> None:
    """Larger than what a socket holds at once, so that it is sent and read in parts."""
    payload = bytes(range(256)) * 40_000

    def work(group: RankGroup) -> bytes | None:
        return group.begin(payload) if group.rank == 0 else group.next_step()

    assert on_all(rank_groups(2), work)[1] == payload
