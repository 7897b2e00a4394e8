"""A frontend, a prefill and a decode worker, all real, in one event loop over hand-computable engines."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from tests.harness.fake_engine import FakeEngine, FakeLimits
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.tiers import WAIT_S, TierServer, at_rest, running, until

# A setting of frontends in tests of the split itself.
ALWAYS_SPLIT = {"conditional_disaggregation": "never"}


class SplitCluster:
    """The three, and calls to the public API."""

    def __init__(self, frontend: FrontendProcess, prefill: TierServer, decode: TierServer) -> None:
        self.frontend = frontend
        self.prefill = prefill
        self.decode = decode
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}")
        self._calls: list[Any] = []  # a call that nobody holds is cancelled
        self.stub: Any = rpc.GenerationServiceStub(self.channel)

    def start(self, prompt: list[int], timeout_s: float = WAIT_S, **sampling: Any) -> Any:
        """A call whose stream nobody reads yet."""
        params = {"temperature": 0.0, "max_tokens": 64, **sampling}
        request = pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=prompt), sampling=params)
        self._calls.append(self.stub.Generate(request, timeout=timeout_s))
        return self._calls[-1]

    async def tokens(self, prompt: list[int], **sampling: Any) -> list[int]:
        """Token ids of a whole answer."""
        call = self.start(prompt, **sampling)
        return [token.id async for message in call for delta in message.deltas for token in delta.tokens]

    async def at_rest(self) -> None:
        """Nothing of any request is left on either worker or in the frontend."""
        await at_rest(self.prefill, self.decode)
        idle = ("running_requests", "waiting_requests", "rpcs_in_flight")
        await until(lambda: not any(self.frontend.stats()[name] for name in idle))


@contextlib.asynccontextmanager
async def split_cluster(
    limits: FakeLimits | None = None,
    *,
    own: dict[Tier, dict[str, Any]] | None = None,
    more: tuple[TierServer, ...] = (),
    frontend: dict[str, Any] | None = None,
    engines: tuple[Any, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[SplitCluster]:
    """Starts the three, waits until the frontend can route, and stops them.

    `more` workers run already and are routed to as well; `frontend` has further settings of the frontend, and `own` of
    one tier alone; `engines` are those of prefill and decode, fake ones unless given.
    """
    prefill_engine, decode_engine = engines or (FakeEngine(limits), FakeEngine(limits))
    prefill = TierServer(Tier.PREFILL, prefill_engine, **settings, **(own or {}).get(Tier.PREFILL, {}))
    decode = TierServer(Tier.DECODE, decode_engine, **settings, **(own or {}).get(Tier.DECODE, {}))
    async with running(prefill, decode):
        members = (prefill, decode, *more)
        workers = ",".join(f"{member.kind.value}={member.info.address}" for member in members)
        values = {"model": str(text_checkpoint()), "served_model_name": "fake", "workers": workers, **ALWAYS_SPLIT}
        process = FrontendProcess(FrontendSettings(port=0, metrics_port=0, **{**values, **(frontend or {})}))
        await process.start()
        cluster = SplitCluster(process, prefill, decode)
        try:
            await until(lambda: len(process.members.snapshot().candidates) == len(members))
            yield cluster
        finally:
            await cluster.channel.close()
            await process.stop()


async def entered(engine: FakeEngine) -> None:
    """Waits until the engine is in a step, or has just been."""
    assert await asyncio.to_thread(engine.entered.acquire, timeout=30)
