"""Every kind of process in one event loop over hand-computable engines, to be fuzzed; and good requests beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from baton.v1 import generation_pb2 as pb

from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.fake_engine import expected_tokens
from tests.harness.fuzz.attempts import EXPECTED
from tests.harness.fuzz.methods import Method, methods_of
from tests.harness.split_cluster import SplitCluster
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.tiers import TierServer, both_legs, running, until, work

# These end a worker's service for good, as they are meant to.
FINAL = frozenset({"Drain", "SwitchRole"})
LEASE_S = 1.0
_HELD = ("blocks_held", "live_requests", "source_tickets", "source_fetches_waiting", "source_channels_ending")
_RUNNING = ("running_requests", "waiting_requests", "rpcs_in_flight", "tokenizer_calls")
PROMPT = list(range(3, 21))
TOKENS = 12
# Who keeps a watch of tokens at a worker: both frontends, and the worker's own client in this test.
CLIENTS = 3


@dataclass
class Deployment:
    """What runs, and how it is asked.

    `cluster` has a frontend with fixed workers. `follower` is one that believes the directory, which anybody can
    register with; so does the decode worker.
    """

    cluster: SplitCluster
    follower: FrontendProcess
    directory: DirectoryProcess
    workers: tuple[TierServer, ...]
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._calls_before = self.calls()

    async def methods(self) -> list[Method]:
        """Every RPC of every process."""
        ports = (self.cluster.frontend.port, self.follower.port, self.directory.port)
        addresses = [*(f"127.0.0.1:{port}" for port in ports), *(worker.info.address for worker in self.workers)]
        return [method for address in addresses for method in await methods_of(address)]

    async def good_request(self) -> str:
        """Asks a good request: OK where its tokens are right; raises where they are not; otherwise its status."""
        request = pb.GenerateRequest(
            tokens=pb.TokenPrompt(token_ids=PROMPT), sampling={"temperature": 0.0, "max_tokens": TOKENS}
        )
        try:
            call = self.cluster.stub.Generate(request, timeout=20)
            found = [token.id async for message in call for delta in message.deltas for token in delta.tokens]
        except grpc.aio.AioRpcError as error:
            if error.code().name not in EXPECTED:
                raise
            return error.code().name
        assert found == expected_tokens(PROMPT, SamplingParams(temperature=0.0), TOKENS), found
        return "OK"

    async def serves(self, timeout_s: float = 20.0) -> None:
        """Waits until good requests are answered."""
        async with asyncio.timeout(timeout_s):
            while await self.good_request() != "OK":  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.05)

    async def at_rest(self) -> None:
        """Nothing is left anywhere: no request, block, ticket, fetch, waiting or running call."""
        try:
            await until(lambda: not self._left())
        except TimeoutError:
            raise AssertionError(f"not at rest: {self._left()}") from None
        assert not any(process.fatal.error for process in (self.cluster.frontend, self.follower, *self.workers))

    def _left(self) -> dict[str, object]:
        """What is held, by name."""
        left: dict[str, object] = {}
        for worker in self.workers:
            load = worker.tier.load()
            held = {name: load.counters[name] for name in _HELD if load.counters.get(name)}
            left[worker.info.worker_id] = {**held, **({"handoffs": load.handoffs} if load.handoffs else {})}
        for name, process in (("frontend", self.cluster.frontend), ("follower", self.follower)):
            left[name] = {count: process.stats()[count] for count in _RUNNING if process.stats()[count]}
        if self.calls() != self._calls_before:
            left["calls"] = (self._calls_before, self.calls())
        return {name: held for name, held in left.items() if held}

    def calls(self) -> list[int]:
        """Calls that run now, by worker, without open channels and the watches of tokens that clients keep."""
        loads = [worker.tier.load() for worker in self.workers]
        watches = [load.counters.get("token_watches", 0) for load in loads]
        kept = [min(count, CLIENTS) for count in watches]
        running = [
            worker.server.stats()["rpcs_in_flight"] - count for worker, count in zip(self.workers, kept, strict=True)
        ]
        return [running[0] - sum(load.channels for load in loads[1:]), *running[1:]]


@contextlib.contextmanager
def heard_complaints(into: list[str]) -> Any:
    """Collects what the event loop complains about: errors that nobody awaited, callbacks that raised."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: into.append(f"{context['message']}: {context.get('exception')!r}"))
    try:
        yield
    finally:
        loop.set_exception_handler(before)


@contextlib.asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    """Starts everything and stops it."""
    directory = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=LEASE_S))
    await directory.start()
    address = f"127.0.0.1:{directory.port}"
    workers = [
        TierServer(tier, directory=address, kv_lease_s=1.0) for tier in (Tier.PREFILL, Tier.DECODE, Tier.COLOCATED)
    ]
    follower = FrontendProcess(
        FrontendSettings(
            model=str(text_checkpoint()), served_model_name="fake", directory=address, port=0, metrics_port=0
        )
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(directory.stop)
        await stack.enter_async_context(running(*workers))
        for worker in workers:
            registration = Registration(address, lambda worker=worker: worker.info)
            registration.start()
            stack.push_async_callback(registration.close)
        await follower.start()
        stack.push_async_callback(follower.stop)
        cluster = await stack.enter_async_context(_fixed(workers[:2]))
        # The follower watches the load of all three, the decode worker has its channel.
        await until(lambda: len(follower.members.snapshot().candidates) == len(workers))
        for sink in workers[1:]:
            await both_legs(workers[0], sink, work(PROMPT), f"first-{sink.kind.value}")
        complaints: list[str] = []
        stack.enter_context(heard_complaints(complaints))
        yield Deployment(cluster, follower, directory, tuple(workers), complaints)


@contextlib.asynccontextmanager
async def _fixed(workers: list[TierServer]) -> AsyncIterator[SplitCluster]:
    """A frontend with these workers and no directory."""
    listed = ",".join(f"{worker.kind.value}={worker.info.address}" for worker in workers)
    process = FrontendProcess(
        FrontendSettings(model=str(text_checkpoint()), served_model_name="fake", workers=listed, port=0, metrics_port=0)
    )
    await process.start()
    cluster = SplitCluster(process, workers[0], workers[1])
    try:
        await until(lambda: len(process.members.snapshot().candidates) == len(workers))
        yield cluster
    finally:
        await cluster.channel.close()
        await process.stop()
