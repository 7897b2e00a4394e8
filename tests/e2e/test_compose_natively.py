"""The services of compose/ run as plain processes: same commands, same environment, other ports."""

import dataclasses
import pathlib
import re
import sysconfig
import time

import pytest

from services.cli.cluster_plan import ClusterPlan, ProcessPlan
from services.cli.free_ports import FreePorts
from services.cli.local_cluster import LocalCluster
from services.cli.routes import routes_ready
from services.common.rpc import security
from services.common.rpc.security import ClientSecurity
from services.common.sampling import SamplingParams
from services.common.types import FinishReason
from services.frontend.client import GenerationClient
from services.frontend.request import Completion, GenerationRequest, TextPrompt
from tests.harness.certificates import OTHER_TOKEN, TOKEN, Authority, token_file
from tests.harness.compose_files import load

HOST = "127.0.0.1"
BATON = str(pathlib.Path(sysconfig.get_path("scripts")) / "baton")
# Less memory than a container has, for a machine that runs other tests too.
SMALL = {"CPU_KV_BYTES": "16MiB", "THREADS": "1"}


def native(services: dict[str, dict[str, object]], certs: pathlib.Path) -> ClusterPlan:
    """Every service as a process on this machine: names become the loopback address, ports become free ones.

    What is mounted at /certs in a container is the folder `certs`.
    """
    free = FreePorts(HOST)
    directory = f"{HOST}:{free.take()}"
    plans: list[ProcessPlan] = []
    for name, service in services.items():
        address = directory if name == "kvtransfer" else f"{HOST}:{free.take()}"
        prefix = f"BATON_{name.upper()}_"
        environment = dict(service["environment"])  # type: ignore[call-overload]
        environment |= {
            f"{prefix}HOST": HOST,
            f"{prefix}PORT": address.rpartition(":")[2],
            f"{prefix}METRICS_PORT": "0",
        }
        if f"{prefix}DIRECTORY" in environment:
            environment[f"{prefix}DIRECTORY"] = directory
        environment = {name: re.sub("^/certs", str(certs), value) for name, value in environment.items()}
        if "cpuset" in service:
            environment |= {f"{prefix}{key}": value for key, value in SMALL.items()} | {"OMP_NUM_THREADS": "1"}
        command = (BATON, *service["command"])  # type: ignore[misc]
        plans.append(
            ProcessPlan(name=name, role=name, argv=command, env=environment, address=address, metrics_address="")
        )
    return ClusterPlan(processes=tuple(plans))


def certified(folder: pathlib.Path) -> ClientSecurity:
    """Makes the files that the TLS overlay wants; gives what a client shows."""
    authority = Authority(folder)
    for name in ("kvtransfer", "prefill", "decode", "frontend"):
        authority.issue(name, host="baton.internal")
    token_file(folder / "cluster-tokens", TOKEN)
    public = token_file(folder / "public-tokens", OTHER_TOKEN)
    return security.new_client_security(authority.issue("operator", tokens=public), server_name="baton.internal")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("overlays", [(), ("compose.tls.yaml",)], ids=["plain", "tls"])
async def test_the_deployment_serves(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, overlays: tuple[str, ...]
) -> None:
    """The commands and variables of compose/ start processes that become healthy and answer over both tiers."""
    plan = native(load("compose.yaml", *overlays)["services"], tmp_path / "certs")
    if overlays:
        monkeypatch.setattr(security, "_client", certified(tmp_path / "certs"))
    cluster = LocalCluster(plan, tmp_path, lambda change: None)
    finish: FinishReason | None = None
    completion: Completion | None = None
    try:
        await cluster.start(90)
        assert await routes_ready(plan, 60)
        request = GenerationRequest(
            request_id="compose",
            prompt=TextPrompt("The capital of France is"),
            sampling=SamplingParams(temperature=0.0, max_tokens=4),
            deadline=time.monotonic() + 60,
        )
        async with GenerationClient(plan.of_role("frontend")[0].address) as client:
            async for output in client.generate(request):
                finish = next((delta.finish for delta in output.deltas if delta.finish), finish)
                completion = output.completion or completion
    finally:
        await cluster.stop(10)
    assert finish is not None
    assert completion is not None
    assert not completion.colocated
    assert completion.usage.completion_tokens >= 1
    assert dataclasses.astuple(completion.stages)[-1] > 0
