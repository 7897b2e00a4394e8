"""What is left of a request that ends early: nothing, on either worker, whatever the phase."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from services.common.errors import DeadlineExceeded
from services.frontend.convert import request_to_proto
from services.frontend.request import Output
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, request
from tests.harness.scripted_workers import Script, eventually, within

ANSWER = ids_of("the capital of France is Paris.")


async def _start(outputs: AsyncIterator[Output]) -> asyncio.Task[Output]:
    return asyncio.create_task(anext(outputs))  # type: ignore[arg-type]


async def _cancel(waiting: asyncio.Task[Output]) -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def _both_are_asked(running: Cluster) -> None:
    """A leg that never got there could not be seen to be withdrawn."""
    await within(running.prefill.asked.wait())
    await within(running.decode.asked.wait())


async def test_cancel_during_prefill_reaches_both_workers() -> None:
    """A client that leaves before the first token stops both legs and gives the ticket back."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script) as running:
        waiting = await _start(running.generate())
        await _both_are_asked(running)
        await _cancel(waiting)
        await within(running.prefill.cancelled.wait())
        await within(running.decode.cancelled.wait())
        await within(running.prefill.was_released.wait())
        await running.idle()


async def test_cancel_during_the_handoff_gives_the_ticket_back() -> None:
    """A client that leaves between first token and decode stops decode and releases the ticket of the done prefill."""
    script = Script(ANSWER)
    script.handoff.clear()
    async with cluster(script) as running:
        outputs = running.generate()
        await within(anext(outputs))
        await _both_are_asked(running)
        await _cancel(await _start(outputs))
        await within(running.decode.cancelled.wait())
        await within(running.prefill.was_released.wait())
        assert running.prefill.released == [running.prefill.requests[0].ticket_id]
        await running.idle()


async def test_cancel_during_decode_stops_decode() -> None:
    """A client that leaves between two tokens stops decode; the ticket, which decode has taken, is left alone."""
    script = Script(ANSWER)
    script.hold_at = 2
    script.steps.clear()
    async with cluster(script) as running:
        outputs = running.generate()
        seen = 0
        while seen < 2:
            seen += len((await within(anext(outputs))).deltas[0].tokens)
        await _cancel(await _start(outputs))
        await within(running.decode.cancelled.wait())
        await running.idle()
        assert not running.prefill.cancelled.is_set()
        assert running.prefill.released == []


async def test_cancel_while_waiting_for_admission_asks_no_worker() -> None:
    """A client that leaves the queue never reaches a worker, and its place goes to nobody else's harm."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script, max_running_requests=1) as running:
        first = await _start(running.generate())
        await _both_are_asked(running)
        second = await _start(running.generate())
        await eventually(lambda: running.process.stats()["waiting_requests"] == 1)
        await _cancel(second)
        await eventually(lambda: running.process.stats()["waiting_requests"] == 0)
        assert len(running.prefill.requests) == 1
        await _cancel(first)
        await running.idle()


async def test_deadline_ends_a_request_that_waits() -> None:
    """A request whose prefill does not come in time ends with DeadlineExceeded, and both legs are withdrawn."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script) as running:
        await running.until_asked(lambda: _runs_out_of_time(running))
        await within(running.prefill.cancelled.wait())
        await within(running.decode.cancelled.wait())
        await running.idle()


async def _runs_out_of_time(running: Cluster) -> None:
    with pytest.raises(DeadlineExceeded):
        await anext(running.client.generate(request(timeout_s=0.5)))


async def test_call_without_a_deadline_gets_the_default() -> None:
    """A client that sets no deadline is not waited on for ever."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script, default_deadline_s=0.5) as running:
        await running.until_asked(lambda: _is_ended_by_the_frontend(running, None))
        await within(running.decode.cancelled.wait())
        await running.idle()


async def test_deadline_is_capped() -> None:
    """A client cannot ask for more time than max_deadline_s."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script, max_deadline_s=0.5) as running:
        await within(_is_ended_by_the_frontend(running, 600.0))
        await running.idle()


async def _is_ended_by_the_frontend(running: Cluster, timeout_s: float | None) -> None:
    error = await running.fails(running.raw(request_to_proto(request()), timeout=timeout_s))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_both_legs_get_the_clients_deadline() -> None:
    """The deadline that the workers see is the client's, not one of the frontend's own."""
    async with cluster(Script(ANSWER)) as running:
        outputs = running.client.generate(request(timeout_s=47.0))
        async with contextlib.aclosing(outputs):
            await within(anext(outputs))
            for worker in running.workers:
                await within(worker.asked.wait())
                assert 17.0 < worker.remaining_s[0] < 47.5


async def test_cancel_storm_leaves_nothing() -> None:
    """After 100 requests cancelled at once the next one is answered, and every count is back at zero."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script) as running:
        waiting = [await _start(running.generate()) for _ in range(100)]
        await within(running.decode.asked.wait())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        script.steps.set()
        assert (await running.outputs())[-1].completion is not None
        await running.idle()
