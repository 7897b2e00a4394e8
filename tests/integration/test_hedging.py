"""A request whose first token is late is tried over a second route, where that is allowed and can help."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.errors import QueueFull
from services.common.types import Tier
from services.frontend.request import Completion, Output
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within

ANSWER = ids_of("the capital of France is Paris.")
PAIRS = (Tier.PREFILL, Tier.DECODE, Tier.PREFILL, Tier.DECODE)
ENOUGH = 20


def _completion(outputs: list[Output]) -> Completion:
    completion = outputs[-1].completion
    assert completion is not None
    return completion


def _hedges(running: Cluster, result: str) -> float:
    sample = running.process.registry.get_sample_value
    return sample("baton_frontend_hedges_total", {"result": result}) or 0.0


@contextlib.asynccontextmanager
async def practised(tiers: tuple[Tier, ...] = PAIRS, **settings: Any) -> AsyncIterator[Cluster]:
    """A cluster that has served so many requests that it knows what is late, each worker with a script of its own."""
    async with cluster(Script(ANSWER), tiers, **{"hedge_factor": 3.0, **settings}) as running:
        for _ in range(ENOUGH):
            assert not _completion(await running.outputs()).hedged
        await running.idle()
        for worker in running.workers:
            worker.script = Script(ANSWER)
            worker.requests.clear()
            worker.asked.clear()
            worker.cancelled.clear()
            worker.was_released.clear()
        yield running


def _unfinished(running: Cluster, worker: ScriptedWorker) -> int:
    candidates = running.process.members.snapshot().candidates
    return next(c.unfinished.requests for c in candidates if c.worker.worker_id == worker.worker_id)


def _ticket(worker: ScriptedWorker) -> str:
    request = worker.requests[-1]
    return request.ticket_id if worker.tier is Tier.PREFILL else request.handoff.ticket_id


class Pair:
    """A prefill and a decode worker that a request was sent to."""

    def __init__(self, workers: list[ScriptedWorker]) -> None:
        self.workers = workers
        self.prefill, self.decode = workers
        self.ids = (self.prefill.worker_id, self.decode.worker_id)

    def hold(self) -> None:
        """Keeps silent."""
        self.prefill.script.first_token.clear()
        self.decode.script.handoff.clear()

    def answer(self) -> None:
        """Says everything."""
        self.prefill.script.first_token.set()
        self.decode.script.handoff.set()

    async def withdrawn(self) -> None:
        """Waits until both have been told to stop and the ticket has been given back."""
        for worker in self.workers:
            await within(worker.cancelled.wait())
        await within(self.prefill.was_released.wait())
        assert self.prefill.released[-1] == self.prefill.requests[-1].ticket_id


async def _late(running: Cluster) -> tuple[asyncio.Task[list[Output]], Pair, Pair]:
    """A request whose first workers are silent and whose second ones were asked; nobody answers before told to."""
    for pair in (Pair(running.workers[:2]), Pair(running.workers[2:])):
        pair.hold()
    waiting = asyncio.create_task(running.outputs())
    await eventually(lambda: all(worker.requests for worker in running.workers))
    prefills = [worker for worker in running.workers if worker.tier is Tier.PREFILL]
    decodes = {_ticket(worker): worker for worker in running.workers if worker.tier is Tier.DECODE}
    pairs = [Pair([worker, decodes[_ticket(worker)]]) for worker in prefills]
    first, second = sorted(pairs, key=lambda pair: pair.prefill.asked_at[-1])
    return waiting, first, second


async def test_second_route_answers_a_late_request() -> None:
    """The second route wins: the answer is right and says so, and the silent workers are told to stop."""
    async with practised() as running:
        waiting, first, second = await _late(running)
        second.answer()
        outputs = await waiting
        assert tokens_of(outputs) == ANSWER
        completion = _completion(outputs)
        assert completion.hedged
        assert completion.moves == 0
        assert (completion.prefill_worker_id, completion.decode_worker_id) == second.ids
        await first.withdrawn()
        assert (_hedges(running, "won"), _hedges(running, "lost")) == (1, 0)
        await running.idle()


async def test_first_route_may_still_win() -> None:
    """The first route speaks after all: it goes on, and the second one is withdrawn."""
    async with practised() as running:
        waiting, first, second = await _late(running)
        first.answer()
        outputs = await waiting
        assert tokens_of(outputs) == ANSWER
        assert (_completion(outputs).prefill_worker_id, _completion(outputs).decode_worker_id) == first.ids
        await second.withdrawn()
        assert (_hedges(running, "won"), _hedges(running, "lost")) == (0, 1)
        await running.idle()


async def test_failure_does_not_win() -> None:
    """The first route fails while the second is silent: the request waits for the second, and has not moved."""
    async with practised() as running:
        waiting, first, second = await _late(running)
        first.prefill.script.error = QueueFull("full")
        first.prefill.script.first_token.set()
        await eventually(lambda: not _unfinished(running, first.prefill))
        second.answer()
        outputs = await waiting
        assert tokens_of(outputs) == ANSWER
        assert _completion(outputs).moves == 0
        assert (_completion(outputs).prefill_worker_id, _completion(outputs).decode_worker_id) == second.ids
        await running.idle()


async def test_cancel_reaches_all_four_workers() -> None:
    """A client that leaves while two routes run stops both."""
    async with practised() as running:
        waiting, first, second = await _late(running)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await first.withdrawn()
        await second.withdrawn()
        await running.idle()


@pytest.mark.parametrize(
    ("tiers", "settings"),
    [
        (PAIRS, {"retry_ratio": 0, "retries_per_s": 0}),
        (PAIRS, {"hedge_factor": 0}),
        ((Tier.PREFILL, Tier.DECODE, Tier.DECODE), {}),
    ],
    ids=["no budget", "switched off", "one prefill worker"],
)
async def test_late_request_is_left_alone(tiers: tuple[Tier, ...], settings: dict[str, Any]) -> None:
    """Without budget, where hedging is off, or with no other worker for the prompt, a late request waits."""
    async with practised(tiers, **settings) as running:
        held = Pair(running.workers[:2])
        held.hold()
        lot = [asyncio.create_task(running.outputs()) for _ in range(2)]
        await within(held.prefill.asked.wait())
        later = time.monotonic() + 0.3  # far longer than what counts as late here
        await eventually(lambda: time.monotonic() > later)
        held.answer()
        for outputs in await asyncio.gather(*lot):
            assert tokens_of(outputs) == ANSWER
            assert not _completion(outputs).hedged
        assert sum(len(worker.requests) for worker in running.workers if worker.tier is Tier.PREFILL) == 2
