"""A real frontend process over scripted workers, in one event loop."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

import grpc
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.frontend.client import GenerationClient, deadline_in
from services.frontend.config import FrontendSettings
from services.frontend.request import GenerationRequest, Output, TextPrompt
from services.frontend.server import FrontendProcess
from tests.harness.scripted_workers import TIMEOUT_S, Script, ScriptedWorker, eventually, within
from tests.harness.text_checkpoint import byte_level_tokenizer, text_checkpoint


def ids_of(text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    return byte_level_tokenizer().encode(text, add_special_tokens=False).ids


IDLE_COUNTS = ("running_requests", "waiting_requests", "tokenizer_calls", "ticket_releases_running", "rpcs_in_flight")


class Cluster:
    """A frontend, its workers, and two ways to call it."""

    def __init__(self, process: FrontendProcess, workers: list[ScriptedWorker]) -> None:
        self.process = process
        self.workers = workers
        self.client = GenerationClient(f"127.0.0.1:{process.port}")
        self.channel = open_channel(f"127.0.0.1:{process.port}")
        self.stub: Any = rpc.GenerationServiceStub(self.channel)

    def worker(self, tier: Tier) -> ScriptedWorker:
        """The first worker of a tier."""
        return next(worker for worker in self.workers if worker.tier is tier)

    @property
    def prefill(self) -> ScriptedWorker:
        return self.worker(Tier.PREFILL)

    @property
    def decode(self) -> ScriptedWorker:
        return self.worker(Tier.DECODE)

    async def reachable(self, count: int) -> None:
        """Waits until the frontend can reach exactly so many workers."""
        members = self.process.members
        while (seen := members.changes.count) >= 0 and len(members.snapshot().candidates) != count:
            await within(members.changes.wait(seen, TIMEOUT_S))

    async def until_asked(self, attempt: Callable[[], Awaitable[object]]) -> None:
        """Repeats an attempt that ends by its time limit until all workers were asked: a slow machine may eat it up."""
        for _ in range(10):
            await within(attempt())
            if all(worker.asked.is_set() for worker in self.workers):
                return
        raise AssertionError("no attempt got as far as the workers")

    async def idle(self) -> None:
        """Waits until nothing of any request is left in the frontend."""
        stats = self.process.stats
        await eventually(lambda: not any(stats()[name] for name in IDLE_COUNTS))
        candidates = self.process.members.snapshot().candidates
        assert not any(candidate.unfinished.requests for candidate in candidates)

    def generate(self, text: str = "hello", **sampling: Any) -> AsyncIterator[Output]:
        """Streams an answer; greedy unless said otherwise."""
        return self.client.generate(request(text, **sampling))

    async def outputs(self, text: str = "hello", **sampling: Any) -> list[Output]:
        """The whole answer."""
        return await within(_collect(self.generate(text, **sampling)))

    async def fails(self, call: Any) -> grpc.aio.AioRpcError:
        """Reads a bare call to its end, which must be an error."""
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the call ended well")

    def raw(self, message: pb.GenerateRequest, timeout: float | None = TIMEOUT_S) -> Any:
        """A bare call."""
        return self.stub.Generate(message, timeout=timeout)

    async def close(self) -> None:
        await self.client.close()
        await self.channel.close()


async def _collect(outputs: AsyncIterator[Output]) -> list[Output]:
    return [output async for output in outputs]


def request(text: str = "hello", timeout_s: float = TIMEOUT_S, **sampling: Any) -> GenerationRequest:
    """A greedy request."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 32, **sampling})
    return GenerationRequest(
        request_id="r-1", prompt=TextPrompt(text), sampling=params, deadline=deadline_in(timeout_s)
    )


def text_of(outputs: list[Output], choice: int = 0) -> str:
    """The text of one choice."""
    return "".join(delta.text for output in outputs for delta in output.deltas if delta.choice == choice)


def tokens_of(outputs: list[Output], choice: int = 0) -> list[int]:
    """The token ids of one choice; their indices must have no gap."""
    tokens = [
        token for output in outputs for delta in output.deltas if delta.choice == choice for token in delta.tokens
    ]
    assert [token.index for token in tokens] == list(range(len(tokens)))
    return [token.id for token in tokens]


@contextlib.asynccontextmanager
async def cluster(
    script: Script, tiers: tuple[Tier, ...] = (Tier.PREFILL, Tier.DECODE), **settings: Any
) -> AsyncIterator[Cluster]:
    """Workers that play `script`, and a frontend that has reached all of them."""
    workers = [ScriptedWorker(tier, script, worker_id=f"{tier.value}-{place}") for place, tier in enumerate(tiers)]
    async with frontend(workers, **settings) as running:
        await running.reachable(len(workers))
        yield running


@contextlib.asynccontextmanager
async def frontend(workers: list[ScriptedWorker], /, **settings: Any) -> AsyncIterator[Cluster]:
    """A frontend over these workers, which are started, too; checks at the end that nothing is left behind."""
    for worker in workers:
        await worker.start()
    addresses = ",".join(f"{worker.tier.value}={worker.address}" for worker in workers)
    values = {"model": str(text_checkpoint()), "port": 0, "metrics_port": 0, "workers": addresses, **settings}
    process = FrontendProcess(FrontendSettings(**values))
    await process.start()
    running = Cluster(process, workers)
    try:
        # Scripted workers always report; a slow machine must not cut their reports off.
        with mock.patch("services.frontend.legs._REPORT_GRACE_S", TIMEOUT_S):
            yield running
    finally:
        await running.close()
        await process.stop()
        for worker in workers:
            await worker.stop()
        await _no_calls(process)


async def _no_calls(process: FrontendProcess) -> None:
    """Fails where something is left; a call that the stop cancelled may take a few turns of the loop to end."""

    def left() -> dict[str, int]:
        counts = process.stats().items()
        return {name: count for name, count in counts if count and not name.startswith("ticket_releases")}

    with contextlib.suppress(TimeoutError):
        await eventually(lambda: not left())
    assert not left(), left()


__all__ = ["Cluster", "Script", "cluster", "grpc", "ids_of", "request", "text_of", "tokens_of", "within"]
