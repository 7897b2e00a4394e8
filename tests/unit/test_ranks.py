"""What ranks are started with, and the keeper that starts, watches and ends their processes."""

import os
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

from services.common.config import ConfigError
from services.common.errors import PeerUnreachable, StepFailed
from services.engine.config import EngineConfig
from services.engine.isolation import step_failed
from services.engine.load import load_model
from services.engine.tensor_parallel.keeper import RankKeeper, Start
from services.engine.tensor_parallel.link import RankLost
from services.engine.tensor_parallel.order import RankOrder
from services.engine.tensor_parallel.ranks import own_config
from services.worker.placement import place_ranks
from tests.harness.checkpoints import tiny_checkpoint

WAIT_S = 30.0
SLEEPING = "import time; time.sleep(600)"


def config(**changes: object) -> EngineConfig:
    return EngineConfig(checkpoint=Path("/m"), tensor_parallel=2, **changes)  # type: ignore[arg-type]


def start(code: str) -> Start:
    return Start([sys.executable, "-I", "-S", "-c", code], os.environ, ())


def test_an_order_is_read_as_it_was_spelt() -> None:
    """Paths, cores and link numbers survive JSON."""
    engine = config(rank_cores=((0, 1), (2,)), num_threads=3, dtype="bfloat16")
    order = RankOrder(rank=1, config=engine, links={0: 7, 2: 9}, exchange=11, kv=12)
    assert RankOrder.read(order.spell()) == order
    assert order.descriptors == (7, 9, 11, 12)


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({"num_threads": 8}, [4, 4]),
        ({"num_threads": 1}, [1, 1]),
        ({"rank_cores": ((0, 1, 2), (3, 4))}, [3, 2]),
        ({"num_threads": 4, "rank_cores": ((0, 1, 2), (3, 4))}, [2, 2]),
    ],
)
def test_ranks_divide_the_workers_threads(changes: dict[str, object], threads: list[int]) -> None:
    """As many as are allowed together, or a thread for each core; one at least."""
    assert [own_config(config(**changes), rank).num_threads for rank in range(2)] == threads


def test_ranks_divide_the_workers_cores() -> None:
    """The calling thread keeps the first share; one rank alone is told no cores."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    try:
        assert place_ranks("", 1) == ()
        shares = place_ranks("", 2)
        assert os.sched_getaffinity(0) == set(shares[0])
        assert sorted({core for share in shares for core in share}) == cores[: max(1, len(cores))]
    finally:
        os.sched_setaffinity(0, before)


def test_the_first_process_that_ends_by_itself_is_reported() -> None:
    """With its rank and its code, to whoever watches then or later; stopping ends the others, and is no such end."""
    keeper, lost = RankKeeper({1: start(SLEEPING), 2: start("raise SystemExit(7)")}), []
    keeper.start()
    try:
        told = threading.Event()
        keeper.watch(lambda error: (lost.append(error), told.set()))
        assert told.wait(WAIT_S)
        assert "rank 2 ended with code 7" in str(lost[0])
        late: list[RankLost] = []
        keeper.watch(late.append)
        assert late == lost
        children = {child.pid for child in psutil.Process().children() if SLEEPING in child.cmdline()}
        assert len(children) == 1
    finally:
        keeper.stop()
    assert keeper.stats() == {"rank_processes": 0}
    assert len(lost) == 1
    assert not any(psutil.pid_exists(pid) for pid in children)


def test_a_process_that_cannot_be_started_leaves_none() -> None:
    """The error is that of the system, and those started before it are ended."""
    keeper = RankKeeper({1: start(SLEEPING), 2: Start(["/no/such/program"], {}, ())})
    with pytest.raises(FileNotFoundError):
        keeper.start()
    keeper.stop()
    assert keeper.stats() == {"rank_processes": 0}


def test_a_lost_rank_is_no_requests_fault() -> None:
    """Requests in that step may run on any other worker, however often that happens; others that raised may not."""
    assert isinstance(step_failed(RankLost("gone")), PeerUnreachable)
    assert isinstance(step_failed(ValueError("odd")), StepFailed)


@pytest.mark.parametrize(("architecture", "reason"), [("phi3", "rowwise_split_input"), ("gpt_neox", "narrower")])
def test_families_that_cannot_be_divided_are_refused(architecture: str, reason: str) -> None:
    """With the reason, by every rank alike."""
    refused = EngineConfig(checkpoint=tiny_checkpoint(architecture), device="cpu", tensor_parallel=2)
    with pytest.raises(ConfigError, match=reason):
        load_model(refused, lambda line: None)


def test_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Honestly: it is not built."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused = EngineConfig(checkpoint=tiny_checkpoint("llama"), device="cuda", tensor_parallel=2)
    with pytest.raises(ConfigError, match="built for cpu, the device is cuda"):
        load_model(refused, lambda line: None)
