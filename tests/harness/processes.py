"""A cluster of real processes, planned and supervised by the same code as `baton up`."""

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from services.cli.cluster_plan import ClusterSettings, ProcessPlan, plan_cluster
from services.cli.cores import ordered_cores
from services.cli.free_ports import FreePorts
from services.cli.launched import Change
from services.cli.local_cluster import LocalCluster
from services.cli.restarts import RestartPolicy
from services.cli.routes import routes_ready
from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import Load
from services.common.worker_client import WorkerClient
from services.frontend.client import GenerationClient
from services.frontend.request import Completion, GenerationRequest, TokenPrompt

START_S = 90.0
# Flags of a frontend, and of workers, that take nobody for lost because the machine is loaded.
PATIENT = {"heartbeat-s": "5"}
PATIENT_WORKER = {"kv-operation-floor-s": "20"}
# Flags of a frontend in tests of the split itself.
ALWAYS_SPLIT = {"conditional-disaggregation": "never"}
Flags = Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a request gave: token ids by choice, and its completion."""

    tokens: dict[int, list[int]]
    text: dict[int, str]
    completion: Completion


class Processes:
    """A running cluster and ways to ask it."""

    def __init__(self, cluster: LocalCluster, changes: list[Change]) -> None:
        self.cluster = cluster
        self.changes = changes  # what became of each process, in order
        self.by_name = {process.plan.name: process for process in cluster.processes}
        self.client = GenerationClient(self.address("frontend-0"))

    def address(self, name: str) -> str:
        """host:port of a process."""
        return self.by_name[name].plan.address

    async def ask(
        self, prompt: list[int], sampling: SamplingParams, *, timeout_s: float = 60.0, **fields: str
    ) -> Answer:
        """Runs one request through the frontend to its end."""
        request = GenerationRequest(
            request_id=f"r{random.getrandbits(40):x}",
            prompt=TokenPrompt(tuple(prompt)),
            sampling=sampling,
            deadline=time.monotonic() + timeout_s,
            **fields,
        )
        tokens: dict[int, list[int]] = {}
        text: dict[int, str] = {}
        completion = None
        async for output in self.client.generate(request):
            for delta in output.deltas:
                assert [token.index for token in delta.tokens] == list(
                    range(len(tokens.get(delta.choice, [])), len(tokens.get(delta.choice, [])) + len(delta.tokens))
                )
                tokens.setdefault(delta.choice, []).extend(token.id for token in delta.tokens)
                text[delta.choice] = text.get(delta.choice, "") + delta.text
            completion = output.completion or completion
        assert completion is not None, "the stream ended without a completion"
        return Answer(tokens, text, completion)

    async def load(self, name: str) -> Load:
        """Load of a worker, asked now."""
        channel = open_channel(self.address(name))
        try:
            return (await WorkerClient(channel, name).describe(10.0))[1]
        finally:
            await channel.close()

    async def workers_at_rest(self, timeout_s: float = 20.0) -> dict[str, Load]:
        """Waits until no worker holds a block, a request, a ticket or a reservation; gives the loads."""
        names = [name for name in self.by_name if name.startswith(("prefill", "decode", "colocated"))]
        deadline = time.monotonic() + timeout_s
        while True:
            loads = {name: await self.load(name) for name in names}
            busy = {name: load for name, load in loads.items() if not is_at_rest(load)}
            if not busy:
                return loads
            assert time.monotonic() < deadline, f"not at rest after {timeout_s} s: {busy}"
            await asyncio.sleep(0.05)


def is_at_rest(load: Load) -> bool:
    """True where a worker holds nothing of any request."""
    return load.handoffs == 0 and load.counters["blocks_held"] == 0 and load.counters["live_requests"] == 0


@contextlib.asynccontextmanager
async def processes(
    checkpoint: Path,
    log_folder: Path,
    counts: Mapping[str, int],
    flags: Flags | None = None,
    modules: Mapping[str, str] | None = None,
    drain_timeout_s: float = 1.0,
) -> AsyncIterator[Processes]:
    """Starts a cluster on free ports and stops it.

    Args:
        checkpoint: served by all workers, in float32.
        log_folder: gets one log a process.
        counts: processes by role.
        flags: further flags by role.
        modules: what to run instead of the ordinary module of a role.
        drain_timeout_s: time that a process gets to leave.
    """
    worker = {"model": str(checkpoint), "dtype": "float32", "cpu-kv-bytes": "64MiB"}
    given = flags or {}
    merged = {
        "prefill": {**worker, **given.get("prefill", {})},
        "decode": {**worker, **given.get("decode", {})},
        "colocated": {**worker, "role": "colocated", **given.get("colocated", {})},
        "frontend": {"model": str(checkpoint), **ALWAYS_SPLIT, **given.get("frontend", {})},
        "kvtransfer": dict(given.get("kvtransfer", {})),
    }
    roles = ("kvtransfer", "prefill", "decode", "colocated", "frontend")
    settings = ClusterSettings(
        counts={"frontend": 1, **counts}, ports=dict.fromkeys(roles, 0), flags=merged, drain_timeout_s=drain_timeout_s
    )
    plan = plan_cluster(settings, ordered_cores(), 0, FreePorts("127.0.0.1").take)
    swapped = tuple(_swapped(process, (modules or {}).get(process.role)) for process in plan.processes)
    plan = dataclasses.replace(plan, processes=swapped)
    policy = RestartPolicy(quick_s=0.0, first_wait_s=0.05)
    changes: list[Change] = []
    cluster = LocalCluster(plan, log_folder, changes.append, policy)
    try:
        await cluster.start(START_S)
        assert await routes_ready(plan, START_S)
        running = Processes(cluster, changes)
        try:
            yield running
        finally:
            await running.client.close()
    finally:
        await cluster.stop(5.0)


def _swapped(plan: ProcessPlan, module: str | None) -> ProcessPlan:
    """The plan with another module to run."""
    if module is None:
        return plan
    return dataclasses.replace(plan, argv=(*plan.argv[:2], module, *plan.argv[3:]))
