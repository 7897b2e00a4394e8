"""A split cluster with a second worker of each tier: what fails or leaves on one goes on with the other."""

import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from baton.v1 import generation_pb2 as pb

from services.common.types import Tier
from services.engine.batch import BatchItem
from tests.harness.fake_engine import FakeEngine, FakeLimits
from tests.harness.split_cluster import SplitCluster, split_cluster
from tests.harness.tiers import WAIT_S, TierServer, running

PROMPT = list(range(10, 40))
LIMITS = FakeLimits(max_num_batched_tokens=16, max_num_seqs=4)


async def read(call: Any, *before: pb.GenerateResponse) -> tuple[dict[int, list[int]], Any]:
    """Token ids by choice, their indices checked, and the completion; `before` has been read already."""
    tokens: dict[int, list[int]] = {}
    messages = [*before]
    while isinstance(message := await call.read(), pb.GenerateResponse):
        messages.append(message)
    for message in messages:
        for delta in message.deltas:
            for token in delta.tokens:
                assert token.index == len(tokens.setdefault(delta.choice_index, []))
                tokens[delta.choice_index].append(token.id)
    return tokens, messages[-1].completion


@contextlib.asynccontextmanager
async def with_spare(
    *, frontend: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[SplitCluster, TierServer, TierServer]]:
    """A split cluster with one more worker of each tier."""
    spare_prefill = TierServer(Tier.PREFILL, FakeEngine(LIMITS), **settings)
    spare_decode = TierServer(Tier.DECODE, FakeEngine(LIMITS), **settings)
    async with (
        running(spare_prefill, spare_decode),
        split_cluster(LIMITS, more=(spare_prefill, spare_decode), frontend=frontend, **settings) as cluster,
    ):
        yield cluster, spare_prefill, spare_decode


def hold_at(index: int, *servers: TierServer) -> threading.Event:
    """Lets no token of this index or a later one be sampled before the event; engines outrun their readers."""
    go_on = threading.Event()

    def wait(items: Sequence[BatchItem]) -> None:
        if any(sample.index >= index for item in items for sample in item.samples):
            assert go_on.wait(WAIT_S), "the test never let the engine go on"

    for server in servers:
        server.engine.on_step = wait
    return go_on


def working(*servers: TierServer) -> TierServer:
    """The one that has a request."""
    (found,) = [server for server in servers if server.tier.load().counters["live_requests"]]
    return found
