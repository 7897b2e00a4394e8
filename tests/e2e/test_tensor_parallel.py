"""Workers whose model is divided between processes: tokens over real handoffs, and what becomes of a lost rank."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.common.sampling import SamplingParams
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import PATIENT, PATIENT_WORKER, Processes, processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

WAIT_S = 60.0
LONG = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)


def flags(prefill_ranks: int, decode_ranks: int, **worker: str) -> dict[str, dict[str, str]]:
    """Flags of patient workers of these degrees; ranks wait longer for each other than any loaded machine takes."""
    patient = {"rank-timeout-s": "60", **PATIENT_WORKER, **worker}
    return {
        "prefill": {"tensor-parallel-size": str(prefill_ranks), **patient},
        "decode": {"tensor-parallel-size": str(decode_ranks), **patient},
        "frontend": PATIENT,
    }


def ranks_of(cluster: Processes, name: str) -> list[psutil.Process]:
    """The rank processes of a worker, besides itself."""
    pid = cluster.by_name[name].pid
    assert pid is not None
    return psutil.Process(pid).children()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for it."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {WAIT_S:g} s"
        await asyncio.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    """True once it has ended; whoever is to wait for it may not have yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(("prefill_ranks", "decode_ranks"), [(2, 1), (1, 2), (2, 2)])
async def test_a_handoff_between_any_degrees_gives_transformers_tokens(
    tmp_path: Path, prefill_ranks: int, decode_ranks: int
) -> None:
    """Mixed prompts at once, greedy and seeded: as generate gives them, and nothing is left in the workers."""
    checkpoint = tiny_checkpoint("llama")
    lengths = random.Random(3).choices((1, 3, 17, 33, 64, 130), k=12)
    prompts = [random_prompt(length, seed=200 + i) for i, length in enumerate(lengths)]
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    wanted = flags(prefill_ranks, decode_ranks)
    async with processes(checkpoint, tmp_path, {"prefill": 1, "decode": 1}, wanted) as cluster:
        assert len(ranks_of(cluster, "prefill-0")) == prefill_ranks - 1
        assert len(ranks_of(cluster, "decode-0")) == decode_ranks - 1
        answers = await asyncio.gather(*(cluster.ask(prompt, greedy) for prompt in prompts))
        loads = await cluster.workers_at_rest()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens[0] == reference_tokens(checkpoint, prompt, 16)
        assert not answer.completion.colocated
    assert loads["decode-0"].counters["prefilled_tokens"] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
async def test_a_lost_rank_ends_its_worker_and_its_requests_go_on_elsewhere(
    tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of an answer: the answer is complete and right, and the worker comes back with new ranks."""
    checkpoint, prompt = tiny_checkpoint("llama"), random_prompt(40, seed=5)
    wanted = _colocated(timeout_s=3)
    async with processes(checkpoint, tmp_path, {"colocated": 2}, wanted) as cluster:
        names = ("colocated-0", "colocated-1")
        asking = asyncio.create_task(cluster.ask(prompt, LONG, timeout_s=180.0))
        busy = await _busy(cluster, names)
        worker, (rank,) = cluster.by_name[busy].pid, ranks_of(cluster, busy)
        rank.send_signal(number)
        answer = await asking
        assert answer.tokens[0] == reference_tokens(checkpoint, prompt, LONG.max_tokens)
        assert answer.completion.moves >= 1
        await until(lambda: cluster.by_name[busy].pid not in (None, worker), "a restart of the worker")
        await until(lambda: is_gone(rank), "the end of the rank")


async def test_an_idle_worker_notices_a_lost_rank(tmp_path: Path) -> None:
    """No step runs that could fail; the worker ends all the same, and says why."""
    async with processes(tiny_checkpoint("llama"), tmp_path, {"colocated": 1}, _colocated()) as cluster:
        worker, (rank,) = cluster.by_name["colocated-0"].pid, ranks_of(cluster, "colocated-0")
        rank.kill()
        await until(lambda: cluster.by_name["colocated-0"].pid not in (None, worker), "a restart of the worker")
        assert "the process of rank 1 ended with code -9" in cluster.by_name["colocated-0"].log_path.read_text()


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
async def test_no_rank_outlives_its_worker(tmp_path: Path, is_stopped: bool) -> None:
    """A SIGKILL of the worker ends its ranks, also one that cannot do anything for it."""
    async with processes(tiny_checkpoint("llama"), tmp_path, {"colocated": 1}, _colocated()) as cluster:
        worker, (rank,) = cluster.by_name["colocated-0"].pid, ranks_of(cluster, "colocated-0")
        assert worker is not None
        if is_stopped:
            rank.suspend()
        os.kill(worker, signal.SIGKILL)
        await until(lambda: is_gone(rank), "the end of the rank")


def _colocated(timeout_s: int = 60) -> dict[str, dict[str, str]]:
    return {"colocated": {"tensor-parallel-size": "2", "rank-timeout-s": str(timeout_s)}, "frontend": PATIENT}


async def _busy(cluster: Processes, names: tuple[str, ...]) -> str:
    """The worker that runs the only request, once it has given tokens."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for name in names:
            load = await cluster.load(name)
            if load.running_requests and load.counters.get("engine_sampled_tokens", 0) > 40:
                return name
        await asyncio.sleep(0.02)
    raise AssertionError("no worker runs the request")
