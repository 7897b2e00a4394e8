"""Workers that give hostile answers: every request ends in time and typed, and OK only with what can be an answer.

A longer run, or the one that found something:

    BATON_TEST_FUZZ_CALLS=20000 BATON_TEST_FUZZ_SEED=7 pytest -m slow tests/fault/test_rogue_workers.py
"""

import asyncio
import collections
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.errors import Internal, error_classes
from services.common.rpc.status import from_rpc_error
from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from tests.harness.fuzz.rogue_worker import Manner, RogueWorker
from tests.harness.text_checkpoint import text_checkpoint
from tests.harness.tiers import until

SEED = int(os.environ.get("BATON_TEST_FUZZ_SEED", "1"))
CALLS = int(os.environ.get("BATON_TEST_FUZZ_CALLS", "5000"))
QUICK_CALLS = 250
CONCURRENCY = 16
TOKENS = list(range(10, 18))
TIMEOUT_S = 0.5
# A call that has not ended so long after its deadline hangs; the machine may be loaded.
GRACE_S = 20.0


class Asked:
    """Requests over one frontend, and what was wrong with how they ended."""

    def __init__(self, frontend: FrontendProcess, channel: grpc.aio.Channel) -> None:
        self.frontend = frontend
        self.ends: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []
        self._stub: Any = rpc.GenerationServiceStub(channel)

    async def many(self, count: int) -> None:
        """Asks so many requests, some of them at the same time."""
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await self._ask(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())

    async def _ask(self, number: int) -> None:
        request = pb.GenerateRequest(
            tokens=pb.TokenPrompt(token_ids=[5, 6, 7]), sampling={"temperature": 0.0, "max_tokens": len(TOKENS)}
        )
        call = self._stub.Generate(request, timeout=TIMEOUT_S)
        answer: list[Any] = []
        try:
            async with asyncio.timeout(TIMEOUT_S + GRACE_S):
                async for message in call:
                    answer.append(message)
            end, wrong = "OK", _wrong_with(answer)
        except TimeoutError:
            end, wrong = "HANG", "it hangs"
        except grpc.aio.AioRpcError as error:
            typed = from_rpc_error(error, "the frontend")
            end, wrong = type(typed).__name__, _untyped(error, typed)
        self.ends[end] += 1
        if wrong:
            self.findings.append(f"call {number}: {wrong}: {answer}")


def _wrong_with(answer: list[Any]) -> str:
    """What shows that an answer that ended with OK cannot be one; empty where nothing does."""
    deltas = [delta for message in answer for delta in message.deltas]
    tokens = [token for delta in deltas for token in delta.tokens]
    if [token.index for token in tokens] != list(range(len(tokens))):
        return "tokens are missing or come twice"
    if not 0 < len(tokens) <= len(TOKENS) or any(delta.choice_index for delta in deltas):
        return "other tokens than asked for"
    if not deltas[-1].finish_reason or not answer[-1].HasField("completion"):
        return "no end"
    is_full = deltas[-1].finish_reason != 2 or len(tokens) == len(TOKENS)
    return "" if is_full else "ended before its length"


def _untyped(error: grpc.aio.AioRpcError, typed: Exception) -> str:
    """What is wrong with an error: Internal must say what a worker did, not that the frontend did not expect it."""
    if isinstance(typed, Internal) and "the log of this server" in str(typed):
        return f"{error.code()} {error.details()}"
    return "" if error.code() is not grpc.StatusCode.UNKNOWN else f"UNKNOWN {error.details()}"


@contextlib.asynccontextmanager
async def asked_of(*workers: RogueWorker) -> AsyncIterator[Asked]:
    """A frontend that has these workers and no others, and that moves nothing."""
    async with contextlib.AsyncExitStack() as stack:
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.stop)
        listed = ",".join(f"{worker.tier.value}={worker.address}" for worker in workers)
        flags = {"port": 0, "metrics_port": 0, "model": str(text_checkpoint()), "served_model_name": "text"}
        frontend = FrontendProcess(FrontendSettings(workers=listed, max_moves=0, eject_failures=0, **flags))
        await frontend.start()
        stack.push_async_callback(frontend.stop)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{frontend.port}"))
        await until(lambda: len(frontend.members.snapshot().candidates) >= sum(not each.lies for each in workers))
        yield Asked(frontend, channel)


async def _at_rest(asked: Asked) -> None:
    idle = ("running_requests", "waiting_requests", "rpcs_in_flight")
    await until(lambda: not any(asked.frontend.stats()[name] for name in idle))


def _outcomes(frontend: FrontendProcess) -> set[str]:
    """How requests ended as the frontend counted them, those that no client waited for among them."""
    found = (sample for metric in frontend.registry.collect() for sample in metric.samples)
    return {sample.labels["outcome"] for sample in found if sample.name == "baton_frontend_requests_total"}


async def _do_no_harm(count: int, seed: int) -> None:
    prefill, decode = RogueWorker(Tier.PREFILL, TOKENS, seed), RogueWorker(Tier.DECODE, TOKENS, seed + 1)
    async with asked_of(prefill, decode) as asked:
        started = time.monotonic()
        await asked.many(count)
        await _at_rest(asked)
        print(f"{count} calls in {time.monotonic() - started:.1f} s", *asked.ends.items(), sep="\n")  # noqa: T201
        assert not asked.findings, f"seed {seed}:\n" + "\n".join(asked.findings)
        assert asked.ends["OK"]
        assert _outcomes(asked.frontend) <= {"ok", "ClientCancelled", *error_classes()}
        assert all(worker.calls[manner] for worker in (prefill, decode) for manner in Manner)


async def test_hostile_answers_do_no_harm():
    """A few hundred requests over a prefill and a decode worker both of whose answers are hostile."""
    await _do_no_harm(QUICK_CALLS, SEED)


async def test_workers_that_lie_about_themselves_do_no_harm():
    """What they say that they are, and how busy, is hostile: requests end typed, and the others are still routed to."""
    honest = [RogueWorker(tier, TOKENS, SEED) for tier in (Tier.PREFILL, Tier.DECODE)]
    liars = [RogueWorker(tier, TOKENS, SEED + place, lies=True) for place, tier in enumerate(Tier)]
    async with asked_of(*honest, *liars) as asked:
        await asked.many(50)
        await _at_rest(asked)
        assert not asked.findings, asked.findings
        known = {candidate.worker.address for candidate in asked.frontend.members.snapshot().candidates}
        assert known >= {worker.address for worker in honest}


@pytest.mark.slow
@pytest.mark.timeout(max(300, CALLS // 20))
async def test_many_hostile_answers_do_no_harm():
    """As the short run, over many more."""
    await _do_no_harm(CALLS, SEED + 100)
