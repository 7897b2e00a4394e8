"""Real processes leave, or change their role, under load: nobody who asked notices."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from services.cli.launched import State
from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import Tier
from services.common.worker_client import WorkerClient
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import START_S, Answer, Processes, processes
from tests.harness.tiers import until

PROMPTS = [[i + 3, *random_prompt(40, seed=8)] for i in range(6)]
TOKENS = 48
SAMPLING = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
DRAIN_S = 20.0


class Clients:
    """Steady clients, each asking one prompt after the other; an answer that fails or is wrong fails the test."""

    def __init__(self, cluster: Processes) -> None:
        self.answers = 0
        self.moves = 0
        self._cluster = cluster
        self._stop = asyncio.Event()
        self._expected = [reference_tokens(tiny_checkpoint("llama"), prompt, TOKENS) for prompt in PROMPTS]
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(len(PROMPTS))]

    async def some_more(self, count: int = 6) -> None:
        """Waits for so many more answers; raises what a client failed with."""
        wanted = self.answers + count
        async with asyncio.timeout(60):
            while self.answers < wanted:
                done, _ = await asyncio.wait(self._tasks, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

    async def finish(self) -> None:
        """Lets every client get its last answer."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            answer = await self._cluster.ask(PROMPTS[number], SAMPLING)
            assert answer.tokens[0] == self._expected[number]
            self.answers += 1
            self.moves += answer.completion.moves


def exits(cluster: Processes, name: str) -> list[str]:
    """How a process has ended, each time."""
    return [change.reason for change in cluster.changes if change.process == name and change.state is State.WAITING]


async def leave(cluster: Processes, name: str) -> None:
    """SIGTERM; waits for the end and checks the exit code."""
    before = len(exits(cluster, name))
    os.kill(cluster.by_name[name].pid, signal.SIGTERM)
    await until(lambda: len(exits(cluster, name)) > before, timeout_s=DRAIN_S + 10)
    assert "exit code 0" in exits(cluster, name)[-1]


async def ready_again(cluster: Processes, name: str) -> None:
    """Waits until the restarted process serves."""
    await until(lambda: cluster.by_name[name].state is State.READY, timeout_s=START_S)


async def known(cluster: Processes, prefills: int, decodes: int) -> None:
    """Waits until the frontend can route to so many workers."""
    async with asyncio.timeout(60):
        while True:
            (model,) = await cluster.client.list_models()
            if (model.prefill_workers, model.decode_workers) == (prefills, decodes):
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_workers_that_leave_fail_nothing(tmp_path: Path):
    """Each worker of a 2 + 2 cluster is told to leave under load and comes back: no failed request, exit code 0."""
    async with processes(
        tiny_checkpoint("llama"), tmp_path, {"prefill": 2, "decode": 2}, drain_timeout_s=DRAIN_S
    ) as cluster:
        clients = Clients(cluster)
        await clients.some_more()
        for name in ("prefill-0", "decode-0", "prefill-1", "decode-1"):
            await leave(cluster, name)
            await clients.some_more()
            await ready_again(cluster, name)
            await known(cluster, 2, 2)
        await clients.finish()
        await cluster.workers_at_rest()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_hurried_drain_moves_streams(tmp_path: Path):
    """`baton drain --now` under load, then SIGTERM: what ran goes on elsewhere, token for token, and nothing fails."""
    async with processes(
        tiny_checkpoint("llama"), tmp_path, {"prefill": 2, "decode": 2}, drain_timeout_s=DRAIN_S
    ) as cluster:
        clients = Clients(cluster)
        await clients.some_more()
        for name in ("decode-0", "decode-1", "prefill-0"):
            channel = open_channel(cluster.address(name))
            try:
                assert await WorkerClient(channel, name).drain(DRAIN_S, move_after_s=0.0) == 0
            finally:
                await channel.close()
            await leave(cluster, name)
            await ready_again(cluster, name)
            await known(cluster, 2, 2)
            await clients.some_more()
        await clients.finish()
        assert clients.moves > 0
        await cluster.workers_at_rest()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_frontend_that_leaves_finishes_its_streams(tmp_path: Path):
    """A frontend that is told to leave mid-stream sends every token that is due, then exits with 0."""
    checkpoint = tiny_checkpoint("llama")
    async with processes(checkpoint, tmp_path, {"prefill": 1, "decode": 1}, drain_timeout_s=DRAIN_S) as cluster:
        long = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        asked: list[asyncio.Task[Answer]] = [asyncio.create_task(cluster.ask(prompt, long)) for prompt in PROMPTS]
        async with asyncio.timeout(30):
            while not (await cluster.load("decode-0")).running_requests and not any(task.done() for task in asked):
                pass
        await leave(cluster, "frontend-0")
        for prompt, answer in zip(PROMPTS, await asyncio.gather(*asked), strict=True):
            assert answer.tokens[0] == reference_tokens(checkpoint, prompt, 100)
        await cluster.workers_at_rest()


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_worker_changes_its_role_under_load(tmp_path: Path):
    """In a 2 + 2 cluster a worker goes prefill → decode → prefill: no failed request, right tokens, same process."""
    async with processes(
        tiny_checkpoint("llama"), tmp_path, {"prefill": 2, "decode": 2}, drain_timeout_s=DRAIN_S
    ) as cluster:
        clients = Clients(cluster)
        await clients.some_more()
        pid = cluster.by_name["prefill-0"].pid
        channel = open_channel(cluster.address("prefill-0"))
        try:
            worker = WorkerClient(channel, "prefill-0")
            for tier, prefills, decodes in ((Tier.DECODE, 1, 3), (Tier.PREFILL, 2, 2)):
                became = await worker.switch_role(tier, 40.0)
                assert became.tier is tier
                await known(cluster, prefills, decodes)
                before = (await worker.describe())[1].counters["engine_steps"]
                await clients.some_more(12)
                assert (await worker.describe())[1].counters["engine_steps"] > before
        finally:
            await channel.close()
        await clients.finish()
        assert cluster.by_name["prefill-0"].pid == pid
        await cluster.workers_at_rest()
