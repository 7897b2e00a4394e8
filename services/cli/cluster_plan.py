"""Turns what `baton up` was asked for into the list of processes to start: names, flags, ports, cores, environment.

Pure: the caller says which cores and GPUs there are and which ports are free.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.cli.cores import spell
from services.common import ports
from services.common.affinity import divide
from services.common.ports import join_address

MODULES = {
    "kvtransfer": "services.kvtransfer.directory",
    "prefill": "services.prefill",
    "decode": "services.decode",
    "colocated": "services.decode",
    "frontend": "services.frontend",
}
DEFAULT_PORTS = {
    "kvtransfer": ports.KVTRANSFER,
    "prefill": ports.PREFILL,
    "decode": ports.DECODE,
    "colocated": ports.DECODE,
    "frontend": ports.FRONTEND,
}
WORKER_ROLES = ("prefill", "decode", "colocated")
RANKS_FLAG = "tensor-parallel-size"
STOP_ORDER = ("frontend", "decode", "colocated", "prefill", "kvtransfer")

Flags = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """What `baton up` was asked for.

    `counts` says how many processes of each role; `flags` has further flags of each role, by name without dashes.
    `ports` says where the ports of a role begin, 0 meaning any free one; roles that are not named begin at the
    defaults. `device` is that of every worker; `utilization` is the share of a GPU's memory that its workers get
    together.
    """

    counts: Mapping[str, int]
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    flags: Mapping[str, Flags] = field(default_factory=dict[str, Flags])
    host: str = "127.0.0.1"
    device: str = "cpu"
    utilization: float = 0.9
    drain_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process: how it is called, how it is started, where it will be reached, which cores it gets."""

    name: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: str
    metrics_address: str
    cores: tuple[int, ...] = ()
    gpu: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """The processes in the order of start, and what the user should know about them."""

    processes: tuple[ProcessPlan, ...]
    notes: tuple[str, ...] = ()

    def of_role(self, role: str) -> list[ProcessPlan]:
        """The processes of one role."""
        return [process for process in self.processes if process.role == role]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs, and the flags and variables that keep it there."""

    cores: tuple[int, ...] = ()
    gpu: int | None = None
    flags: Flags = field(default_factory=dict[str, str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])


def plan_cluster(
    settings: ClusterSettings, cores: Sequence[int], num_gpus: int, take_port: Callable[[int], int]
) -> ClusterPlan:
    """Plans every process.

    Args:
        settings: what is wanted.
        cores: cores that may be used, neighbours beside each other; at least one.
        num_gpus: CUDA devices of this machine.
        take_port: gives a free port, that which it is passed where possible.
    """
    roles = [role for role in WORKER_ROLES for _ in range(settings.counts.get(role, 0))]
    on_gpus = settings.device == "cuda"
    ranks = [_num_ranks(settings, role) for role in roles]
    places = _on_gpus(settings, len(roles), num_gpus) if on_gpus else _on_cores(cores, ranks)
    planner = _Planner(settings, take_port)
    processes = [planner.plan("kvtransfer", Place())]
    planner.directory = processes[0].address
    processes += [planner.plan(role, place) for role, place in zip(roles, places, strict=True)]
    processes += [planner.plan("frontend", Place()) for _ in range(settings.counts.get("frontend", 0))]
    return ClusterPlan(processes=tuple(processes), notes=tuple(_notes(settings, len(cores), ranks, num_gpus)))


class _Planner:
    """Plans one process after the other: numbers them and gives each its ports."""

    def __init__(self, settings: ClusterSettings, take_port: Callable[[int], int]) -> None:
        self.directory = ""
        self._settings = settings
        self._take_port = take_port
        self._counts: dict[str, int] = {}

    def plan(self, role: str, place: Place) -> ProcessPlan:
        """Plans the next process of a role."""
        index = self._counts.get(role, 0)
        self._counts[role] = index + 1
        base = self._settings.ports.get(role, DEFAULT_PORTS[role])
        port = self._take_port(base + index if base else 0)
        metrics_port = self._take_port(ports.metrics_port(port) if base else 0)
        name = role if role == "kvtransfer" else f"{role}-{index}"
        flags = self._flags(name, role, place) | {"port": str(port), "metrics-port": str(metrics_port)}
        return ProcessPlan(
            name=name,
            role=role,
            argv=(sys.executable, "-m", MODULES[role], *spell_flags(flags | dict(self._settings.flags.get(role, {})))),
            env={"PYTHONUNBUFFERED": "1", **place.env},
            address=join_address(self._settings.host, port),
            metrics_address=join_address(self._settings.host, metrics_port),
            cores=place.cores,
            gpu=place.gpu,
        )

    def _flags(self, name: str, role: str, place: Place) -> dict[str, str]:
        flags = {
            "host": self._settings.host,
            "log-format": "console",
            "drain-timeout-s": f"{self._settings.drain_timeout_s:g}",
        }
        if role != "kvtransfer":
            flags["directory"] = self.directory
        if role in WORKER_ROLES:
            flags |= {"worker-id": name, "device": self._settings.device}
        return flags | dict(place.flags)


def spell_flags(flags: Flags) -> tuple[str, ...]:
    """Flags as a process takes them; a flag without a value stands alone."""
    return tuple(f"--{name}={value}" if value else f"--{name}" for name, value in flags.items())


def _num_ranks(settings: ClusterSettings, role: str) -> int:
    """Processes that share the model in each worker of a role; what is no number its own process will refuse."""
    given = settings.flags.get(role, {}).get(RANKS_FLAG, "1")
    return max(1, int(given)) if given.isdecimal() else 1


def _on_cores(cores: Sequence[int], ranks: Sequence[int]) -> list[Place]:
    """Cores for each worker, as many shares as it has ranks, and a thread for each.

    Between two parallel parts of a step, some microseconds apart, threads spin: waking them took as long as the step
    itself where measured. Where ranks share cores they sleep at once, for a spinning thread takes another's core.
    """
    spins = "30000" if sum(ranks) <= len(cores) else "0"  # about 0.1 ms
    shares = iter(divide(cores, sum(ranks)) if ranks else [])
    by_worker = [list(dict.fromkeys(core for _ in range(count) for core in next(shares))) for count in ranks]
    return [
        Place(
            cores=tuple(share),
            flags={"cpus": spell(share), "threads": str(len(share))},
            env={
                "OMP_NUM_THREADS": str(len(share)),
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "passive",
                "GOMP_SPINCOUNT": spins,
                "KMP_BLOCKTIME": "0",
            },
        )
        for share in by_worker
    ]


def _on_gpus(settings: ClusterSettings, workers: int, num_gpus: int) -> list[Place]:
    """A GPU for each worker while there are enough, else workers share one and its memory."""
    per_gpu = -(-workers // max(1, num_gpus))
    share = f"{settings.utilization / per_gpu:.3f}"
    return [
        Place(
            gpu=index % max(1, num_gpus),
            flags={"gpu-memory-utilization": share},
            env={"CUDA_VISIBLE_DEVICES": str(index % max(1, num_gpus))},
        )
        for index in range(workers)
    ]


def _notes(settings: ClusterSettings, cores: int, ranks: Sequence[int], num_gpus: int) -> Iterator[str]:
    workers = len(ranks)
    if settings.device == "cpu" and sum(ranks) > cores:
        what = f"{workers} workers" if sum(ranks) == workers else f"{workers} workers of {sum(ranks)} processes"
        yield f"{what} share {cores} core{'s' * (cores > 1)}: they will slow each other down"
    if settings.device == "cuda" and workers > num_gpus:
        yield f"{workers} workers share {num_gpus} GPU{'s' * (num_gpus > 1)} and memory"
