"""Real prefill and decode workers in the test's own event loop, on real sockets, over hand-computable engines."""

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from services.common.lifecycle import Fatal
from services.common.rpc.channel import open_channel
from services.common.rpc.server import RpcServer
from services.common.sampling import SamplingParams
from services.common.types import DecodeEvent, Handoff, PrefillResult, Tier, Token, WorkerInfo, WorkRequest
from services.common.worker_service import WorkerServicer
from services.decode.client import DecodeClient
from services.decode.config import DecodeSettings
from services.decode.server import DecodeTier
from services.kvtransfer.transport.available import AVAILABLE
from services.prefill.client import PrefillClient
from services.prefill.config import PrefillSettings
from services.prefill.server import PrefillTier
from services.worker.process import Parts
from tests.harness.fake_engine import FakeEngine

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
WAIT_S = 40.0
# Time for a message of KV: a loaded machine is no dead link, except where a test says so.
SLOW_MACHINE_S = 20.0


class TierServer:
    """One worker of either tier behind a real gRPC server; `tier.load().counters` shows all it owns."""

    def __init__(self, kind: Tier, engine: Any = None, **settings: Any) -> None:
        self.kind = kind
        self.engine = engine or FakeEngine()
        self.registry = CollectorRegistry()
        self.transports = settings.pop("transports", AVAILABLE)  # what carries a prefill worker's KV
        limits = self.engine.limits
        values = {
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "kv_lease_s": 5.0,
            "kv_operation_floor_s": SLOW_MACHINE_S,
            **settings,
        }
        # Set before `start`: where it listens, and what it tells others of that.
        self.port = 0
        self.advertised = ""
        is_prefill = kind is Tier.PREFILL
        self.settings = PrefillSettings(**values) if is_prefill else DecodeSettings(role=kind.value, **values)

    async def start(self, worker_id: str = "") -> "TierServer":
        """Listens on its port, or a free one."""
        port = self.port or free_port()
        self.info = WorkerInfo(
            worker_id=worker_id or f"{self.kind.value}-{port}",
            incarnation=secrets.token_hex(8),
            tier=self.kind,
            address=self.advertised or f"127.0.0.1:{port}",
            model="fake",
            layout=self.engine.layout,
            max_model_len=self.engine.limits.max_model_len,
            version="test",
            total_blocks=self.engine.limits.num_blocks,
            max_num_seqs=self.engine.limits.max_num_seqs,
        )
        self.fatal = Fatal()
        parts = Parts(self.engine, self.info, self.fatal, self.registry)  # type: ignore[arg-type]
        if isinstance(self.settings, PrefillSettings):
            self.tier = PrefillTier(self.settings, parts, self.transports)
        else:
            self.tier = DecodeTier(self.settings, parts)
        self._servicer = WorkerServicer(self.tier, self.tier.changes)
        await self.tier.start()
        self.server = RpcServer("127.0.0.1", port, [*self.tier.bindings(), self._servicer.binding()])
        await self.server.start()
        self.server.set_serving(True)
        self.channel = open_channel(f"127.0.0.1:{port}")
        self.prefill = PrefillClient(self.channel, self.info.worker_id)
        self.decode = DecodeClient(self.channel, self.info.worker_id)
        return self

    async def stop(self) -> None:
        """Ends everything."""
        if isinstance(self.engine, FakeEngine):
            self.engine.gate.set()
        await self.channel.close()
        self._servicer.close()
        await self.tier.close()
        await self.server.stop(0)

    def handoff(self, ticket_id: str) -> Handoff:
        """The right to fetch a ticket from this worker."""
        return Handoff(
            ticket_id=ticket_id,
            worker_id=self.info.worker_id,
            incarnation=self.info.incarnation,
            address=self.info.address,
        )

    @property
    def blocks_held(self) -> int:
        """KV blocks that somebody holds."""
        return self.tier.load().counters["blocks_held"]

    async def settled(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds after some change of the worker's load."""
        await until(condition, self.tier.changes.wait)


async def until(
    condition: Callable[[], bool],
    wait: Callable[[int, float], Awaitable[bool]] | None = None,
    timeout_s: float = WAIT_S,
) -> None:
    """Waits until `condition` holds, at most `timeout_s` seconds; looks again after every change, or every 10 ms."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await (wait(-1, 0.01) if wait and not condition() else asyncio.sleep(0.01))
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(*servers: TierServer) -> AsyncIterator[None]:
    """Starts workers and stops them, whatever happens in between."""
    started: list[TierServer] = []
    try:
        for server in servers:
            started.append(await server.start())
        yield
    finally:
        await asyncio.gather(*(server.stop() for server in started))


def work(prompt: list[int] | range, sampling: SamplingParams = GREEDY, **fields: Any) -> WorkRequest:
    """A request with a deadline that a healthy test never meets."""
    values: dict[str, Any] = {
        "request_id": f"r-{secrets.token_hex(4)}",
        "deadline": time.monotonic() + WAIT_S,
        **fields,
    }
    return WorkRequest(token_ids=tuple(prompt), sampling=sampling, **values)


async def collect(events: AsyncIterator[DecodeEvent]) -> tuple[dict[int, list[Token]], DecodeEvent]:
    """All tokens by choice, their indices checked, and the last event."""
    tokens: dict[int, list[Token]] = {}
    last = DecodeEvent()
    async for event in events:
        for choice in event.choices:
            tokens.setdefault(choice.choice, []).extend(choice.tokens)
        last = event
    assert last.summary is not None
    for choice_tokens in tokens.values():
        assert [token.index for token in choice_tokens] == list(range(len(choice_tokens)))
    return tokens, last


async def both_legs(
    prefill: TierServer, decode: TierServer, request: WorkRequest, ticket: str
) -> tuple[PrefillResult, dict[int, list[Token]], DecodeEvent]:
    """Runs both legs at once, as a frontend does."""
    first = dataclasses.replace(request, ticket_id=ticket)
    second = dataclasses.replace(request, handoff=prefill.handoff(ticket))
    result, (tokens, last) = await asyncio.gather(prefill.prefill.prefill(first), collect(decode.decode.decode(second)))
    return result, tokens, last


async def at_rest(*servers: TierServer) -> None:
    """No block, request, ticket or reservation is left on any worker."""
    for server in servers:
        await server.settled(
            lambda server=server: (
                server.blocks_held == 0
                and server.tier.load().handoffs == 0
                and server.tier.load().counters["live_requests"] == 0
            )
        )


def ids(tokens: list[Token]) -> list[int]:
    """Token ids alone."""
    return [token.id for token in tokens]


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
