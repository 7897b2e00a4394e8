"""Measures the handoff from one prefill worker that runs: set-up of a channel, and fetches of computed prompts.

This process is the sink. A prompt is computed first and fetched then, so that the fetch waits for nothing but the way.
"""

import argparse
import asyncio
import dataclasses
import statistics
import time

import torch

from benchmarks.part import Found
from benchmarks.progress import tracked
from benchmarks.running_worker import RunningWorker, running_worker
from benchmarks.transfer_pair import LaidOutKv, make_kv, worker
from services.common.config import ConfigError
from services.common.types import Handoff, Tier, WorkerInfo
from services.kvtransfer.config import TransferConfig
from services.kvtransfer.sink import KvSink
from services.prefill.client import PrefillClient


def measure(options: argparse.Namespace) -> Found:
    """A row for each length, with medians over the repetitions.

    Raises:
        ConfigError: the worker is of another tier, or a prompt is too long for it.
        BatonError: it could not be asked, or the KV did not arrive.
    """
    torch.set_num_threads(1)
    return asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> Found:
    async with running_worker(options) as source:
        if source.info.tier is not Tier.PREFILL:
            raise ConfigError(f"{source.peer} is no prefill worker; only those hand over")
        source.check_length(max(options.lengths) + 2)
        layout = source.info.layout
        kv, blocks = make_kv(max(options.lengths), layout)
        config = TransferConfig(checksum=not options.no_checksum)
        sink = KvSink(LaidOutKv(kv, layout), worker("benchmark", Tier.DECODE, "127.0.0.1:1", layout), config)
        try:
            setup_s = await _setup_s(sink, source.info, options.repeats)
            fetches = _Fetches(source, sink, blocks, options.repeats)
            rows = [await fetches.row(length, setup_s) for length in tracked("transfer", options.lengths)]
        finally:
            await sink.close()
    return {"worker": source.describe(), "checksum": not options.no_checksum}, rows


async def _setup_s(sink: KvSink, source: WorkerInfo, repeats: int) -> float:
    """Median time until a channel is proven; the first one does not count."""
    times: list[float] = []
    for _ in range(repeats + 1):
        await sink.disconnect(source.worker_id)
        began = time.perf_counter()
        await sink.connect(source)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


@dataclasses.dataclass(frozen=True, slots=True)
class _Fetches:
    """Fetches prompts of a source into the same blocks again and again."""

    source: RunningWorker
    sink: KvSink
    blocks: tuple[int, ...]
    repeats: int

    async def row(self, tokens: int, setup_s: float) -> dict[str, float]:
        """Median fetch of a prompt of so many tokens; the first one does not count."""
        seconds = statistics.median([await self._fetch_s(tokens) for _ in range(self.repeats + 1)][1:])
        layout = self.source.info.layout
        fetched = tokens * layout.token_elements * getattr(torch, layout.dtype).itemsize
        return {
            "prompt_tokens": tokens,
            "fetch_mb": fetched / 1e6,
            "setup_ms": setup_s * 1e3,
            "fetch_ms": seconds * 1e3,
            "gb_per_s": fetched / seconds / 1e9,
        }

    async def _fetch_s(self, tokens: int) -> float:
        info = self.source.info
        request = self.source.request(tokens, 2)
        request = dataclasses.replace(request, ticket_id=request.request_id)
        await PrefillClient(self.source.channel, self.source.peer).prefill(request)
        handoff = Handoff(
            ticket_id=request.ticket_id,
            worker_id=info.worker_id,
            incarnation=info.incarnation,
            address=info.address,
        )
        table = self.blocks[: -(-tokens // info.layout.block_size)]
        began = time.perf_counter()
        await self.sink.fetch(handoff, request.request_id, table, 0, tokens, request.deadline)
        return time.perf_counter() - began
