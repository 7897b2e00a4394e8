"""What `baton up` starts: processes, flags, ports, cores and GPUs."""

import itertools
from collections.abc import Callable

import pytest

from services.cli.cluster_plan import ClusterPlan, ClusterSettings, plan_cluster
from services.common import ports


def plan(
    settings: ClusterSettings, cores: int = 8, gpus: int = 0, take: Callable[[int], int] | None = None
) -> ClusterPlan:
    """Plans on a machine with so many cores and GPUs, on which preferred ports are free."""
    others = itertools.count(20_000)
    return plan_cluster(settings, list(range(cores)), gpus, take or (lambda preferred: preferred or next(others)))


def flags(process_argv: tuple[str, ...]) -> dict[str, str]:
    """Flags of a command line, by name."""
    return dict(word[2:].split("=", 1) for word in process_argv if word.startswith("--"))


TWO_AND_TWO = ClusterSettings(counts={"prefill": 2, "decode": 2, "frontend": 1})


def test_processes_start_in_order_and_have_unique_names() -> None:
    """The directory is first, the frontend last, workers are numbered within their tier."""
    names = [process.name for process in plan(TWO_AND_TWO).processes]
    assert names == ["kvtransfer", "prefill-0", "prefill-1", "decode-0", "decode-1", "frontend-0"]


def test_everybody_but_the_directory_is_told_where_the_directory_is() -> None:
    """Each worker and frontend gets the directory's address; the directory itself has no such flag."""
    directory, *others = plan(TWO_AND_TWO).processes
    assert "directory" not in flags(directory.argv)
    assert {flags(other.argv)["directory"] for other in others} == {directory.address}


def test_default_ports_are_used_where_they_are_free() -> None:
    """The frontend is at 9000 and the second prefill worker beside the first."""
    addresses = {process.name: process.address for process in plan(TWO_AND_TWO).processes}
    assert addresses["frontend-0"] == f"127.0.0.1:{ports.FRONTEND}"
    assert addresses["prefill-1"] == f"127.0.0.1:{ports.PREFILL + 1}"


def test_no_port_is_preferred_where_zero_was_asked_for() -> None:
    """Base port 0 asks for any free port, for gRPC and for metrics."""
    asked: list[int] = []

    def take(preferred: int) -> int:
        asked.append(preferred)
        return 30_000 + len(asked)

    roles = ("kvtransfer", "prefill", "decode", "frontend")
    counts = {"prefill": 1, "decode": 1, "frontend": 1}
    processes = plan(ClusterSettings(counts=counts, ports=dict.fromkeys(roles, 0)), take=take).processes
    assert set(asked) == {0}
    assert len({process.address for process in processes}) == len(processes)


def test_cpu_workers_get_cores_and_threads_of_their_own() -> None:
    """Four workers on eight cores have two cores and two threads each, and do not overlap."""
    workers = plan(TWO_AND_TWO, cores=8).processes[1:5]
    assert sorted(core for worker in workers for core in worker.cores) == list(range(8))
    assert {flags(worker.argv)["threads"] for worker in workers} == {"2"}
    assert {worker.env["OMP_NUM_THREADS"] for worker in workers} == {"2"}
    assert {worker.env["GOMP_SPINCOUNT"] for worker in workers} == {"30000"}


def test_threads_do_not_spin_on_cores_that_others_need() -> None:
    """Where workers share cores, their threads sleep as soon as they wait."""
    workers = plan(TWO_AND_TWO, cores=2).processes[1:5]
    assert {(worker.env["OMP_WAIT_POLICY"], worker.env["GOMP_SPINCOUNT"]) for worker in workers} == {("passive", "0")}


def test_the_user_is_told_when_workers_share_cores() -> None:
    """Four workers on two cores are planned, with a note; two workers are planned without one."""
    assert "share 2 cores" in plan(TWO_AND_TWO, cores=2).notes[0]
    assert plan(ClusterSettings(counts={"prefill": 1, "decode": 1}), cores=2).notes == ()


def test_a_worker_gets_as_many_shares_of_the_cores_as_it_has_ranks() -> None:
    """A prefill worker of two ranks has twice the cores and threads of a decode worker of one."""
    settings = ClusterSettings(
        counts={"prefill": 1, "decode": 2}, flags={"prefill": {"tensor-parallel-size": "2"}, "decode": {}}
    )
    prefill, *decodes = plan(settings, cores=8).processes[1:4]
    assert prefill.cores == (0, 1, 2, 3)
    assert [decode.cores for decode in decodes] == [(4, 5), (6, 7)]
    assert [flags(worker.argv)["threads"] for worker in (prefill, *decodes)] == ["4", "2", "2"]
    assert "3 workers of 4 processes share 3 cores" in plan(settings, cores=3).notes[0]
    assert plan(settings, cores=4).notes == ()


def test_frontends_are_not_pinned() -> None:
    """Processes that do not compute may run anywhere."""
    outer = plan(TWO_AND_TWO).processes
    assert outer[0].cores == outer[-1].cores == ()


@pytest.mark.parametrize(
    ("gpus", "devices", "share"), [(4, "0123", "0.900"), (2, "0101", "0.450"), (1, "0000", "0.225")]
)
def test_gpu_workers_are_spread_and_share_memory(gpus: int, devices: str, share: str) -> None:
    """Each worker sees one GPU; workers of one GPU divide its memory."""
    settings = ClusterSettings(counts=TWO_AND_TWO.counts, device="cuda", utilization=0.9)
    workers = plan(settings, gpus=gpus).processes[1:5]
    assert "".join(worker.env["CUDA_VISIBLE_DEVICES"] for worker in workers) == devices
    assert {flags(worker.argv)["gpu-memory-utilization"] for worker in workers} == {share}


def test_a_users_flag_wins_over_the_planned_one() -> None:
    """Flags given for a role replace those that the plan would set."""
    settings = ClusterSettings(
        counts={"prefill": 1, "decode": 1}, flags={"decode": {"threads": "1", "max-num-seqs": "3"}}
    )
    prefill, decode = plan(settings, cores=8).processes[1:3]
    assert flags(prefill.argv)["threads"] == "4"
    assert flags(decode.argv)["threads"] == "1"
    assert flags(decode.argv)["max-num-seqs"] == "3"
