"""Local clusters that are measured side by side, planned and supervised as by `baton up`."""

import asyncio
import contextlib
import pathlib
import re
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from services.cli.cluster_plan import ClusterPlan, plan_cluster
from services.cli.cores import ordered_cores
from services.cli.free_ports import FreePorts
from services.cli.local_cluster import LocalCluster
from services.cli.up import count_gpus
from services.cli.up_settings import UpSettings, cluster_settings

STOP_GRACE_S = 10.0
_SPLIT = {"prefill": 1, "decode": 1, "colocated": 0}
CLUSTERS = {
    "split": {**_SPLIT, "frontend_args": "conditional-disaggregation=never"},
    "conditional": _SPLIT,
    "colocated": {"prefill": 0, "decode": 0, "colocated": 1},
}
_CHUNK_FLAGS = {"split": "prefill_args", "conditional": "prefill_args", "colocated": "decode_args"}
_VARIANT = re.compile(rf"({'|'.join(CLUSTERS)})(?:-([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Variant:
    """A local cluster: a key of `CLUSTERS`, and the most tokens in a step that computes prompts; 0 is the default."""

    kind: str
    chunk_tokens: int = 0

    def settings(self, worker_args: str = "") -> dict[str, object]:
        """What it asks of `baton up`, with further settings for every worker."""
        given = dict.fromkeys(_CHUNK_FLAGS.values(), worker_args)
        if self.chunk_tokens:
            chunk = f"max-num-batched-tokens={self.chunk_tokens}"
            given[_CHUNK_FLAGS[self.kind]] = f"{worker_args} {chunk}".strip()
        return {**CLUSTERS[self.kind], **given}


def parse_variant(text: str) -> Variant:
    """Reads a key of `CLUSTERS`, alone or with a number of tokens, such as `colocated-256`.

    Raises:
        ValueError: it is none of them.
    """
    found = _VARIANT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is none of {', '.join(CLUSTERS)}, alone or with tokens of a step as in split-512")
    return Variant(found[1], int(found[2] or 0))


@contextlib.asynccontextmanager
async def local_clusters(
    names: Sequence[str], checkpoint: pathlib.Path, dtype: str, start_timeout_s: float, worker_args: str = ""
) -> AsyncGenerator[list[ClusterPlan]]:
    """Starts clusters of one checkpoint, each over all cores, and stops them; one that is not asked only sleeps.

    Args:
        names: as `parse_variant` reads them.
        checkpoint: directory of the model.
        dtype: element type of weights and KV; empty for the worker's default.
        start_timeout_s: time for each cluster to become ready.
        worker_args: further settings of every worker, as name=value.

    Raises:
        ClusterFailed: one did not become ready; the message has the end of its log.
    """
    async with contextlib.AsyncExitStack() as stack:
        plans: list[ClusterPlan] = []
        for name in names:
            plan = await local_plan(name, checkpoint, dtype, worker_args)
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-bench-"))
            await stack.enter_async_context(running_cluster(plan, pathlib.Path(logs), start_timeout_s))
            plans.append(plan)
        yield plans


async def local_plan(
    name: str,
    checkpoint: pathlib.Path,
    dtype: str = "",
    worker_args: str = "",
    further: Mapping[str, object] | None = None,
) -> ClusterPlan:
    """The processes of one local cluster, on free ports and over all cores; see `local_clusters`.

    `further` are settings of `baton up` that count before those of the name.
    """
    gpus = await asyncio.to_thread(count_gpus)
    settings = UpSettings.model_validate(
        {
            "model": str(checkpoint),
            "dtype": dtype,
            "port": 0,
            **parse_variant(name).settings(worker_args),
            **(further or {}),
        }
    )
    wanted = cluster_settings(settings, str(checkpoint), "cuda" if gpus else "cpu")
    return plan_cluster(wanted, ordered_cores(), gpus, FreePorts("127.0.0.1").take)


@contextlib.asynccontextmanager
async def running_cluster(
    plan: ClusterPlan, logs: pathlib.Path, start_timeout_s: float
) -> AsyncGenerator[LocalCluster]:
    """Starts the processes of a plan and stops them.

    Raises:
        ClusterFailed: they did not become ready in time; the message has the end of a log.
    """
    cluster = LocalCluster(plan, logs, lambda change: None)
    try:
        await cluster.start(start_timeout_s)
        yield cluster
    finally:
        await cluster.stop(STOP_GRACE_S)
