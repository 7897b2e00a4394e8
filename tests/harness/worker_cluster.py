"""Directory, frontend and whole worker processes in one event loop, on real sockets, over hand-computable engines."""

import contextlib
from collections.abc import AsyncIterator
from unittest import mock

import grpc
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.rpc.channel import open_channel
from services.common.types import Load, Tier, WorkerInfo
from services.common.worker_client import WorkerClient
from services.decode.config import DecodeSettings
from services.decode.server import ROLES as DECODE_ROLES
from services.decode.server import build as build_decode
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.server import DirectoryProcess
from services.prefill.config import PrefillSettings
from services.prefill.server import ROLES as PREFILL_ROLES
from services.prefill.server import build as build_prefill
from services.worker.process import WorkerProcess
from tests.harness.fake_engine import FakeEngine, FakeLimits, expected_tokens
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.tiers import GREEDY, until

LIMITS = FakeLimits(num_blocks=96, max_num_batched_tokens=16, max_num_seqs=4)


class WorkerCluster:
    """What runs, by worker id; engines outlive the roles of their workers."""

    def __init__(self, directory: DirectoryProcess, frontend: FrontendProcess) -> None:
        self.directory = directory
        self.frontend = frontend
        self.processes: dict[str, WorkerProcess] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.addresses: dict[str, str] = {}
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}")
        self._stub = rpc.GenerationServiceStub(self._channel)

    async def close(self) -> None:
        """Ends the connection to the frontend."""
        await self._channel.close()

    async def tokens(self, prompt: list[int], max_tokens: int, timeout_s: float = 30.0) -> list[int]:
        """Token ids of a whole answer."""
        sampling = {"temperature": 0.0, "max_tokens": max_tokens}
        call = self._stub.Generate(
            pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=prompt), sampling=sampling), timeout=timeout_s
        )
        return [token.id async for message in call for delta in message.deltas for token in delta.tokens]

    async def check(self, prompt: list[int], max_tokens: int) -> None:
        """Asks and compares."""
        assert await self.tokens(prompt, max_tokens) == expected_tokens(prompt, GREEDY, max_tokens)

    def tiers(self) -> dict[str, Tier]:
        """What the frontend can route to."""
        return {c.worker.worker_id: c.worker.tier for c in self.frontend.members.snapshot().candidates}

    async def routable(self, **tiers: Tier) -> None:
        """Waits until the frontend routes to exactly these; a `_` in a name stands for a `-`."""
        wanted = {name.replace("_", "-"): tier for name, tier in tiers.items()}
        await until(lambda: self.tiers() == wanted)

    @contextlib.asynccontextmanager
    async def asked(self, name: str) -> AsyncIterator[WorkerClient]:
        """A client of a worker's WorkerService."""
        channel = open_channel(self.addresses[name])
        try:
            yield WorkerClient(channel, name)
        finally:
            await channel.close()

    async def describe(self, name: str) -> tuple[WorkerInfo, Load]:
        """What a worker says that it is, and its load."""
        async with self.asked(name) as client:
            return await client.describe()

    async def switch(
        self, name: str, tier: Tier, timeout_s: float = 30.0, move_after_s: float | None = 0.0
    ) -> WorkerInfo:
        """Switches a worker through its RPC."""
        async with self.asked(name) as client:
            return await client.switch_role(tier, timeout_s, move_after_s)


@contextlib.asynccontextmanager
async def worker_cluster(prefills: int, decodes: int) -> AsyncIterator[WorkerCluster]:
    """Starts `prefill-0 …`, `decode-0 …` and the rest, waits until all can be routed to, and stops them."""
    async with contextlib.AsyncExitStack() as stack:
        directory = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=5.0))
        await directory.start()
        stack.push_async_callback(directory.stop)
        address = f"127.0.0.1:{directory.port}"
        frontend = FrontendProcess(
            FrontendSettings(
                port=0, metrics_port=0, model=str(text_checkpoint()), served_model_name="fake", directory=address
            )
        )
        await frontend.start()
        stack.push_async_callback(frontend.stop)
        cluster = WorkerCluster(directory, frontend)
        stack.push_async_callback(cluster.close)
        stack.enter_context(
            mock.patch("services.worker.loading.load_warm", lambda settings, _: cluster.engines[settings.worker_id])
        )
        for tier, count in ((Tier.PREFILL, prefills), (Tier.DECODE, decodes)):
            for number in range(count):
                name = f"{tier.value}-{number}"
                cluster.engines[name] = FakeEngine(LIMITS)
                process = cluster.processes[name] = _process(tier, name, address)
                stack.push_async_callback(process.stop)
                await process.start()
                assert process._role is not None
                cluster.addresses[name] = process._role.info.address
        await until(lambda: len(cluster.tiers()) == prefills + decodes)
        yield cluster


def _process(tier: Tier, name: str, directory: str) -> WorkerProcess:
    values = {
        "port": 0,
        "metrics_port": 0,
        "worker_id": name,
        "model": "fake",
        "served_model_name": "fake",
        "directory": directory,
        "kv_transport": "gloo",
        "kv_lease_s": 5.0,
        "max_num_seqs": LIMITS.max_num_seqs,
        "max_num_batched_tokens": LIMITS.max_num_batched_tokens,
    }
    if tier is Tier.PREFILL:
        return build_prefill(PrefillSettings(**values), DECODE_ROLES)
    return build_decode(DecodeSettings(**values), PREFILL_ROLES)
