"""Local clusters that are measured side by side, planned and supervised as by `baton up`."""

import asyncio
import contextlib
import pathlib
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from services.cli.cluster_plan import ClusterPlan, plan_cluster
from services.cli.cores import ordered_cores
from services.cli.free_ports import FreePorts
from services.cli.local_cluster import LocalCluster
from services.cli.up import count_gpus
from services.cli.up_settings import UpSettings, cluster_settings

STOP_GRACE_S = 10.0
CLUSTERS = {
    "split": {"prefill": 1, "decode": 1, "colocated": 0},
    "colocated": {"prefill": 0, "decode": 0, "colocated": 1},
}


@dataclass(frozen=True, slots=True)
class Target:
    """A frontend to measure."""

    name: str
    address: str


@contextlib.asynccontextmanager
async def local_clusters(
    names: Sequence[str], checkpoint: pathlib.Path, dtype: str, start_timeout_s: float
) -> AsyncGenerator[list[Target]]:
    """Starts clusters of one checkpoint, each over all cores, and stops them; one that is not asked only sleeps.

    Args:
        names: keys of `CLUSTERS`.
        checkpoint: directory of the model.
        dtype: element type of weights and KV; empty for the worker's default.
        start_timeout_s: time for each cluster to become ready.

    Raises:
        ClusterFailed: one did not become ready; the message has the end of its log.
    """
    gpus = await asyncio.to_thread(count_gpus)
    ports = FreePorts("127.0.0.1")
    async with contextlib.AsyncExitStack() as stack:
        targets: list[Target] = []
        for name in names:
            settings = UpSettings.model_validate(
                {"model": str(checkpoint), "dtype": dtype, "port": 0, **CLUSTERS[name]}
            )
            wanted = cluster_settings(settings, str(checkpoint), "cuda" if gpus else "cpu")
            plan = plan_cluster(wanted, ordered_cores(), gpus, ports.take)
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-bench-"))
            await stack.enter_async_context(_running(plan, pathlib.Path(logs), start_timeout_s))
            targets.append(Target(name, plan.of_role("frontend")[0].address))
        yield targets


@contextlib.asynccontextmanager
async def _running(plan: ClusterPlan, logs: pathlib.Path, start_timeout_s: float) -> AsyncGenerator[None]:
    cluster = LocalCluster(plan, logs, lambda change: None)
    try:
        await cluster.start(start_timeout_s)
        yield
    finally:
        await cluster.stop(STOP_GRACE_S)
