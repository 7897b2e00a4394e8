"""What a response and the metrics say of a request that really ran split."""

import asyncio
import time
import urllib.request
from pathlib import Path

import grpc
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.rpc.stages import stages_from_metadata
from tests.harness.checkpoints import random_prompt, tiny_checkpoint
from tests.harness.processes import processes

PROMPT = random_prompt(64, seed=2)
# A handoff ends with a call that renews the lease; no call between processes is faster than this.
LEAST_HANDOFF_NS = 50_000
COUNTED = {
    "prefill-0": ("baton_prefill_prefill_seconds_count 1.0", "baton_prefill_prefilled_tokens_total 64.0"),
    "decode-0": ("baton_decode_handoff_seconds_count 1.0", "baton_decode_prefilled_tokens_total 0.0"),
    "frontend-0": ('baton_frontend_stage_seconds_count{stage="handoff"} 1.0',),
}


async def test_stages_are_told_and_counted(tmp_path: Path):
    """Queue, prefill, handoff, admission and decode are in the last message, the trailing metadata and the metrics."""
    request = pb.GenerateRequest(
        tokens=pb.TokenPrompt(token_ids=PROMPT), sampling={"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    )
    async with processes(tiny_checkpoint("llama"), tmp_path, {"prefill": 1, "decode": 1}) as cluster:
        async with grpc.aio.insecure_channel(cluster.address("frontend-0")) as channel:
            started = time.monotonic_ns()
            call = rpc.GenerationServiceStub(channel).Generate(request, timeout=30)
            last = [message async for message in call][-1]
            elapsed = time.monotonic_ns() - started
            trailing = stages_from_metadata(await call.trailing_metadata())
        stages = last.completion.stages
        for name in ("queue", "prefill", "handoff", "admission", "decode", "ttft", "total"):
            assert 0 < getattr(stages, f"{name}_ns") <= elapsed, name
            assert getattr(trailing, f"{name}_ns") >= getattr(stages, f"{name}_ns"), name
        assert stages.ttft_ns <= stages.total_ns
        assert stages.handoff_ns > LEAST_HANDOFF_NS
        for name, lines in COUNTED.items():
            await _counted(cluster.by_name[name].plan.metrics_address, lines)


async def _counted(address: str, lines: tuple[str, ...]) -> None:
    """Waits until a process's metrics have these lines: it may still be counting what has just ended."""
    missing = list(lines)
    for _ in range(100):
        page = await asyncio.to_thread(_scrape, address)
        if not (missing := [line for line in lines if line not in page]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(missing)


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as page:
        return page.read().decode()
