"""A cluster of real processes for fault scenarios: real signals, nothing restarted unless the scenario says so.

Processes are planned and launched by the code behind `baton up`. Prefill and decode run through
`tests/harness/paused_worker.py`, which adds the pauses, slowness and another version, and nothing else.
"""

import asyncio
import contextlib
import dataclasses
import functools
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import psutil

from services.cli.cluster_plan import STOP_ORDER, ClusterPlan, ClusterSettings, ProcessPlan, plan_cluster
from services.cli.cores import ordered_cores
from services.cli.free_ports import FreePorts
from services.cli.launched import Change, Launched, State
from services.cli.restarts import RestartPolicy
from services.cli.routes import routes_ready
from services.common.errors import BatonError
from services.common.sampling import SamplingParams
from tests.fault.clients import PROMPTS, prompt
from tests.fault.cluster_links import ClusterLinks
from tests.fault.evidence import ProcessState
from tests.fault.phases import CHUNK_TOKENS
from tests.fault.samples import asked, scraped
from tests.fault.scenario import Load, Topology
from tests.harness.checkpoints import reference_tokens, tiny_checkpoint
from tests.harness.ordered_faults import HurtOrder, OrdersByFile
from tests.harness.paused_worker import VERSION_VARIABLE
from tests.harness.pauses import FOLDER_VARIABLE, Pause, PauseFolder
from tests.harness.processes import ALWAYS_SPLIT
from tests.harness.slow_engine import SlownessFiles
from tests.harness.tiers import until

# A worker that starts under load, on busy cores, takes a minute.
START_S = 240.0
STOP_S = 5.0
LOOK_S = 0.05
LEASE_S = 4.0
WORKERS = ("prefill", "decode")
# Nobody is started again but by the scenario.
NEVER_AGAIN = RestartPolicy(quick_s=float("inf"), max_quick_deaths=1, max_first_deaths=1)
SPARES = 2
LONGEST_ANSWER = 48

Lead = Callable[[Sequence[ProcessPlan]], tuple[ProcessPlan, ...]]
"""Gives the plans of all processes other networks to run in."""


class RealCluster:
    """Processes of one plan; satisfies `scenario.Cluster`."""

    is_timing_exact = False
    lease_s = LEASE_S

    def __init__(self, topology: Topology, folder: Path, lead: Lead | None = None) -> None:
        self._checkpoint = tiny_checkpoint("llama")
        self._folder = folder
        self._pauses = PauseFolder(folder / "pauses")
        self._slowness = SlownessFiles(self._pauses.folder)
        self._hurts = OrdersByFile(self._pauses.folder)
        self.links = ClusterLinks(folder)
        self.plan = _plan(topology, self._checkpoint, self._pauses.folder)
        lead = self.links.lead if topology.is_proxied else lead
        if lead is not None:
            self.plan = ClusterPlan(processes=lead(self.plan.processes))
        self._plans = {process.name: process for process in self.plan.processes}
        self.launched: dict[str, Launched] = {}
        self._ended: list[tuple[str, int | None]] = []
        self._unready: list[str] = []
        self.starting = [
            process.name
            for process in self.plan.processes
            if process.role == "kvtransfer" or _number(process.name) < getattr(topology, process.role)
        ]

    async def open(self) -> None:
        """Starts the processes of the topology and waits until every frontend can route to all workers."""
        await self.links.open()
        for name in self.starting:
            self._launch(self._plans[name])
        for number in range(PROMPTS):  # now, for no clock runs yet and the processes start anyway
            await asyncio.to_thread(self.expected, prompt(number, Load().prompt_tokens), SamplingParams(max_tokens=1))
        for name in self.starting:
            await self._ready(name)
        await self.routable()

    async def routable(self) -> None:
        """Waits until every frontend knows every worker that runs, and every pair of workers has a channel."""
        running = tuple(self._plans[name] for name in self.names())
        assert await routes_ready(ClusterPlan(processes=running), START_S), "a frontend does not know all workers"
        async with asyncio.timeout(START_S):
            for name in self.names(*WORKERS):
                await self._connected(name)

    async def close(self) -> None:
        """Ends everything."""
        self.resume()
        for process in self.launched.values():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)
        for role in STOP_ORDER:
            ending = [process for process in self.launched.values() if process.plan.role == role]
            await asyncio.gather(*(process.stop(STOP_S) for process in ending))
        await self.links.close()

    @property
    def is_timing_judged(self) -> bool:
        """False while the machine has more to do than this cluster makes of it."""
        return os.getloadavg()[0] <= 2 * (os.cpu_count() or 1)

    def names(self, *roles: str) -> list[str]:
        running = [name for name, process in self.launched.items() if process.pid is not None]
        return [name for name in running if not roles or self._plans[name].role in roles]

    def address(self, name: str) -> str:
        return self._plans[name].address

    def expected(self, prompt: list[int], sampling: SamplingParams) -> dict[int, list[int]]:
        tokens = _reference(self._checkpoint, tuple(prompt), LONGEST_ANSWER)[: sampling.max_tokens]
        return {choice: tokens for choice in range(sampling.n)}

    async def kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)
        await until(lambda: self.launched[name].pid is None)

    async def terminate(self, name: str) -> int | None:
        self._signal(name, signal.SIGTERM)
        await until(lambda: self.launched[name].state is State.GIVEN_UP, timeout_s=START_S)
        return self._ended[-1][1]

    async def freeze(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)

    async def thaw(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)

    async def start(self, name: str, version: str = "", **flags: str) -> None:
        if name in self.launched:
            await self.launched[name].stop(STOP_S)
        self._launch(_with_version(_with_flags(self._plans[name], flags), version))
        await self._ready(name)

    def slow_down(self, name: str, times: float) -> None:
        self._slowness.set(name, times)

    async def join(self, role: str, **flags: str) -> str:
        name = next(name for name, plan in self._plans.items() if plan.role == role and name not in self.names())
        await self.start(name, **flags)
        return name

    def hurt(self, order: HurtOrder) -> None:
        self._hurts.give(order)

    def num_hurt(self, name: str) -> int:
        return self._hurts.num_hurt(name)

    def pause(self, pause: Pause) -> None:
        self._pauses.pause(pause)

    def resume(self) -> None:
        self._pauses.resume()

    def paused(self) -> set[str]:
        return self._pauses.paused() & set(self.names())

    async def state(self, name: str) -> ProcessState:
        process = psutil.Process(self.launched[name].pid)
        incarnation, counts = str(process.pid), {}
        if self._plans[name].role in WORKERS:
            incarnation, counts = await asked(self.address(name), name)
        return ProcessState(
            incarnation=incarnation,
            counts=counts,
            metrics=await asyncio.to_thread(scraped, self._plans[name].metrics_address),
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            memory_bytes=process.memory_info().rss,
        )

    def ended(self) -> list[tuple[str, int | None]]:
        return list(self._ended)

    def unready(self) -> list[str]:
        return list(self._unready)

    async def _connected(self, name: str) -> None:
        """Waits until a worker has its channels, and none to who is gone: each of them takes descriptors."""
        peers = self.names(*(role for role in WORKERS if role != self._plans[name].role))
        while True:
            with contextlib.suppress(BatonError):
                _, counts = await asked(self.address(name), name)
                if counts["channels"] == len(peers):
                    return
            await asyncio.sleep(LOOK_S)

    def _launch(self, plan: ProcessPlan) -> None:
        process = Launched(plan, self._folder / f"{plan.name}-{len(self._ended)}.log", NEVER_AGAIN, self._changed)
        self.launched[plan.name] = process
        process.start()

    async def _ready(self, name: str) -> None:
        process = self.launched[name]
        await until(lambda: process.state in (State.READY, State.GIVEN_UP), timeout_s=START_S)
        assert process.state is State.READY, "\n".join(process.log_tail())

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.launched[name].pid
        assert pid is not None, f"{name} does not run"
        os.kill(pid, number)

    def _changed(self, change: Change) -> None:
        if change.state is State.NOT_READY:
            self._unready.append(change.process)
        if change.state is State.GIVEN_UP:
            self._ended.append((change.process, _exit_code(change.reason)))


@contextlib.asynccontextmanager
async def real_cluster(topology: Topology, folder: Path, lead: Lead | None = None) -> AsyncIterator[RealCluster]:
    """Starts the processes of a topology, changed as `lead` says, and ends them."""
    cluster = RealCluster(topology, folder, lead)
    try:
        await cluster.open()
        yield cluster
    finally:
        await cluster.close()


def _plan(topology: Topology, checkpoint: Path, pauses: Path) -> ClusterPlan:
    """Processes of the topology and spare ones, which only a scenario starts."""
    worker = {
        "model": str(checkpoint),
        "dtype": "float32",
        "cpu-kv-bytes": "16MiB",
        "kv-lease-s": f"{LEASE_S:g}",
        "no-enable-prefix-caching": "",
        "max-num-seqs": "8",
    }
    flags = {
        "prefill": {**worker, "max-num-batched-tokens": str(CHUNK_TOKENS)},
        "decode": {**worker, "max-num-batched-tokens": "64"},
        "frontend": {"model": str(checkpoint), **ALWAYS_SPLIT},
    }
    for role, further in topology.flags.items():
        flags.setdefault(role, {}).update(further)
    roles = ("prefill", "decode", "frontend")
    settings = ClusterSettings(
        counts={role: getattr(topology, role) + SPARES for role in roles},
        ports=dict.fromkeys((*roles, "kvtransfer"), 0),
        flags=flags,
        drain_timeout_s=10.0,
    )
    plan = plan_cluster(settings, ordered_cores(), 0, FreePorts("127.0.0.1").take)
    return dataclasses.replace(plan, processes=tuple(_paused(process, pauses) for process in plan.processes))


def _paused(plan: ProcessPlan, pauses: Path) -> ProcessPlan:
    """The plan of a worker with the pauses added; others stay as they are."""
    if plan.role not in WORKERS:
        return plan
    argv = (*plan.argv[:2], "tests.harness.paused_worker", plan.role, *plan.argv[3:])
    # Any core: workers come and go, and a share of two cores cannot be divided among all that may ever be there.
    argv = tuple(part for part in argv if not part.startswith("--cpus="))
    return dataclasses.replace(plan, argv=argv, env={**plan.env, FOLDER_VARIABLE: str(pauses)}, cores=())


def _with_flags(plan: ProcessPlan, flags: dict[str, str]) -> ProcessPlan:
    further = tuple(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())
    return dataclasses.replace(plan, argv=plan.argv + further)


def _with_version(plan: ProcessPlan, version: str) -> ProcessPlan:
    return dataclasses.replace(plan, env={**plan.env, VERSION_VARIABLE: version}) if version else plan


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _exit_code(reason: str) -> int | None:
    """What a death's description says: the exit code, or minus the signal."""
    killed = re.search(r"was killed by (SIG\w+)", reason)
    if killed:
        return -signal.Signals[killed[1]]
    left = re.search(r"ended with exit code (\d+)", reason)
    return int(left[1]) if left else None


@functools.cache
def _reference(checkpoint: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    return reference_tokens(checkpoint, list(prompt), count)
