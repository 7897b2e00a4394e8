"""Measures the handoff alone: KV from one process to another over gloo or NCCL, beside a raw socket between them.

For each message size: how long a channel takes to set up (connection, rendezvous and probe), how long a fetch of one
message takes, and how many bytes per second a large fetch moves, with checksums, from paged KV into paged KV.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Callable

import torch

from benchmarks.part import Found
from benchmarks.progress import tracked
from benchmarks.raw_socket import RawClient
from benchmarks.transfer_pair import INCARNATION, SOURCE_ID, TOKEN_BYTES, LaidOutKv, TransferCase, make_kv, worker
from services.common.types import Handoff, Tier
from services.kvtransfer.sink import KvSink

START_TIMEOUT_S = 120.0
FETCH_TIMEOUT_S = 120.0
Row = dict[str, float]


def measure(options: argparse.Namespace) -> Found:
    """A row for each message size.

    Raises:
        BatonError: the KV did not arrive.
        OSError, TimeoutError: the other process did not start or ended early.
    """
    torch.set_num_threads(1)
    cases = [
        TransferCase(
            message_bytes=size,
            fetch_bytes=options.fetch_bytes,
            checksum=not options.no_checksum,
            repeats=options.repeats,
            device=options.device,
            transport=options.transport,
        )
        for size in options.message_bytes
    ]
    rows = [asyncio.run(measure_case(case)) for case in tracked("transfer", cases)]
    facts = {"token_bytes": TOKEN_BYTES, "checksum": not options.no_checksum}
    return {**facts, "device": options.device, "transport": options.transport}, rows


async def measure_case(case: TransferCase) -> Row:
    """One message size, between two fresh processes; medians over the repetitions, handoff and socket in turn.

    Raises:
        BatonError: the KV did not arrive.
        OSError, TimeoutError: the other process did not start or ended early.
    """
    async with _source(case) as (address, raw_port):
        info = worker(SOURCE_ID, Tier.PREFILL, address, case.layout)
        kv, blocks = make_kv(case.fetch_tokens, case.layout, case.device)
        sink = KvSink(LaidOutKv(kv, case.layout), worker("sink", Tier.DECODE, "127.0.0.1:1", case.layout), case.config)
        try:
            setups: list[float] = []
            for _ in range(case.repeats + 1):
                await sink.disconnect(SOURCE_ID)
                began = time.perf_counter()
                await sink.connect(info)
                setups.append(time.perf_counter() - began)
            pair = _Pair(case, sink, blocks, address, raw_port)
            return await pair.row(statistics.median(setups[1:]))
        finally:
            await sink.close()


class _Pair:
    """A connected pair and its raw socket."""

    def __init__(self, case: TransferCase, sink: KvSink, blocks: tuple[int, ...], address: str, raw_port: int) -> None:
        self._case = case
        self._sink = sink
        self._blocks = blocks
        self._address = address
        self._raw_port = raw_port

    async def row(self, setup_s: float) -> Row:
        """All figures of the case."""
        case = self._case
        one_s, raw_one_s = await self._both(case.message_tokens)
        all_s, raw_all_s = await self._both(case.fetch_tokens)
        fetched = case.fetch_tokens * TOKEN_BYTES
        return {
            "message_kib": case.message_bytes / 2**10,
            "fetch_mb": fetched / 1e6,
            "setup_ms": setup_s * 1e3,
            "message_ms": one_s * 1e3,
            "raw_message_ms": raw_one_s * 1e3,
            "gb_per_s": fetched / all_s / 1e9,
            "raw_gb_per_s": fetched / raw_all_s / 1e9,
            "raw_share": raw_all_s / all_s,
        }

    async def _both(self, tokens: int) -> tuple[float, float]:
        """Median seconds of a fetch of so many tokens, and of as many bytes over the raw socket, taken in turn."""
        times: list[float] = []
        raw_times: list[float] = []
        buffer = memoryview(bytearray(tokens * TOKEN_BYTES))
        client = await asyncio.to_thread(RawClient, self._raw_port)
        try:
            for ticket_id in self._case.ticket_ids(tokens):
                began = time.perf_counter()
                await self._fetch(ticket_id, tokens)
                times.append(time.perf_counter() - began)
                raw_times.append(await asyncio.to_thread(_timed, client.fetch, buffer, self._case.message_bytes))
        finally:
            client.close()
        return statistics.median(times[1:]), statistics.median(raw_times[1:])

    async def _fetch(self, ticket_id: str, tokens: int) -> None:
        handoff = Handoff(ticket_id=ticket_id, worker_id=SOURCE_ID, incarnation=INCARNATION, address=self._address)
        deadline = time.monotonic() + FETCH_TIMEOUT_S
        await self._sink.fetch(handoff, f"request-{ticket_id}", self._blocks, 0, tokens, deadline)


def _timed(fetch: Callable[[memoryview, int], None], buffer: memoryview, message_bytes: int) -> float:
    began = time.perf_counter()
    fetch(buffer, message_bytes)
    return time.perf_counter() - began


@contextlib.asynccontextmanager
async def _source(case: TransferCase) -> AsyncGenerator[tuple[str, int]]:
    """The other process; gives its address and the port of its raw socket."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.transfer_source", json.dumps(dataclasses.asdict(case)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, **case.source_environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline() if process.stdout else b""
        if not line:
            raise ConnectionError("the sending process ended before it could be asked")
        ready = json.loads(line)
        yield ready["address"], ready["raw_port"]
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Closes the input of the process, which ends it, and kills it where that does not help."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(10.0):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
