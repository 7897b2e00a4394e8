"""A source and a sink with a real gRPC connection between them, in one process, on one event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from services.common.rpc.server import Binding, RpcServer
from services.common.types import ChoiceTokens, Handoff, StageTimes, Tier, Token, WorkerInfo
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.sink import Fetched, KvSink
from services.kvtransfer.source import KvSource
from services.kvtransfer.transfer_service import binding
from services.kvtransfer.transport.available import AVAILABLE
from services.kvtransfer.transport.base import Transports
from tests.harness.fake_kv import LAYOUT, FakeKv

# Small messages, so that short prompts take several; short pauses, so that faults are repaired in a moment.
CONFIG = TransferConfig(
    max_message_bytes=4 * LAYOUT.token_elements * 4,
    staging_bytes=8 * LAYOUT.token_elements * 4,
    operation_floor_s=10.0,
    connect_timeout_s=10.0,
    channel_wait_s=10.0,
    refetch_s=10.0,
    min_backoff_s=0.02,
    max_backoff_s=0.2,
)
FIRST_TOKENS = (ChoiceTokens(0, (Token(7, 0),)),)
STAGES = StageTimes(queue_ns=11, prefill_ns=22)
NUM_TOKENS = 22
SOURCE_BLOCKS = (9, 3, 4, 12, 5, 6)
SINK_BLOCKS = (1, 2, 8, 7, 20, 21)


def worker(
    worker_id: str, tier: Tier, kv: FakeKv, *, address: str = "127.0.0.1:1", incarnation: str = "i1"
) -> WorkerInfo:
    """A worker as the directory would know it."""
    return WorkerInfo(
        worker_id=worker_id,
        incarnation=incarnation,
        tier=tier,
        address=address,
        model="demo",
        layout=kv.layout,
        max_model_len=1024,
        version="0",
        total_blocks=64,
        max_num_seqs=4,
    )


@dataclass
class SourceSide:
    """A running source; `released` lists the tickets that were given back."""

    kv: FakeKv
    source: KvSource
    server: RpcServer
    info: WorkerInfo
    released: list[str] = field(default_factory=list)

    def handoff(self, ticket_id: str) -> Handoff:
        """What the frontend would tell the sink."""
        info = self.info
        return Handoff(
            ticket_id=ticket_id, worker_id=info.worker_id, incarnation=info.incarnation, address=info.address
        )

    def open(self, ticket_id: str, num_tokens: int = NUM_TOKENS, blocks: tuple[int, ...] = SOURCE_BLOCKS) -> None:
        """Starts a prefill."""
        self.source.open(ticket_id, f"request-{ticket_id}", blocks, num_tokens)

    def compute(self, ticket_id: str, start: int, end: int, blocks: tuple[int, ...] = SOURCE_BLOCKS) -> None:
        """Computes a chunk."""
        self.kv.fill(blocks, start, end)
        self.source.advance(ticket_id, end)

    def finish(self, ticket_id: str) -> None:
        """Ends a prefill."""
        self.source.finish(ticket_id, FIRST_TOKENS, STAGES, 3)

    def prefill(self, ticket_id: str, num_tokens: int = NUM_TOKENS) -> None:
        """A whole prefill at once."""
        self.open(ticket_id, num_tokens)
        self.compute(ticket_id, 0, num_tokens)
        self.finish(ticket_id)

    async def stop(self) -> None:
        """What a prefill worker does at its end."""
        await self.source.close()
        await self.server.stop(0)


@dataclass
class Pair:
    """Both sides."""

    left: SourceSide
    kv: FakeKv
    sink: KvSink

    async def fetch(
        self,
        ticket_id: str,
        *,
        blocks: tuple[int, ...] = SINK_BLOCKS,
        start_token: int = 0,
        num_tokens: int = NUM_TOKENS,
        timeout_s: float = 20.0,
    ) -> Fetched:
        """Fetches as a decode worker does."""
        deadline = time.monotonic() + timeout_s
        handoff = self.left.handoff(ticket_id)
        return await self.sink.fetch(handoff, f"request-{ticket_id}", blocks, start_token, num_tokens, deadline)


async def start_source(
    kv: FakeKv,
    config: TransferConfig = CONFIG,
    transports: Transports = AVAILABLE,
    *,
    incarnation: str = "i1",
    port: int = 0,
    bind: Callable[[KvSource], Binding] = binding,
) -> SourceSide:
    """Starts a source and its gRPC server."""
    released: list[str] = []
    info = worker("prefill-0", Tier.PREFILL, kv, incarnation=incarnation)
    source = KvSource(kv, info, config, released.append, transports)
    await source.start()
    server = RpcServer("127.0.0.1", port, [bind(source)])
    address = f"127.0.0.1:{await server.start()}"
    return SourceSide(kv, source, server, replace(info, address=address), released)


@asynccontextmanager
async def kv_pair(
    config: TransferConfig = CONFIG,
    *,
    source_kv: FakeKv | None = None,
    sink_kv: FakeKv | None = None,
    source_transports: Transports = AVAILABLE,
    sink_transports: Transports = AVAILABLE,
    sink_config: TransferConfig | None = None,
    bind: Callable[[KvSource], Binding] = binding,
) -> AsyncIterator[Pair]:
    """Starts both sides, not connected, and stops them; `bind` serves the source."""
    left = await start_source(source_kv or FakeKv(), config, source_transports, bind=bind)
    kv = sink_kv or FakeKv()
    sink = KvSink(kv, worker("decode-0", Tier.DECODE, kv), sink_config or config, sink_transports)
    try:
        yield Pair(left, kv, sink)
    finally:
        await sink.close()
        await left.stop()


async def until(is_true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits until something that other tasks bring about is true; fails after the timeout."""
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110 - production code has no hooks that a test could wait for
            await asyncio.sleep(0.002)
