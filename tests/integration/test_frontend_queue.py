"""The frontend's queue over real sockets: priority, time limit and hints reach the client."""

import asyncio
import dataclasses

import pytest

from services.common.convert import priority_from_proto, priority_to_proto
from services.common.errors import InvalidRequest, QueueExpired, QueueFull
from services.common.priority import Priority
from services.frontend.client import GenerationClient
from services.frontend.convert import request_to_proto
from services.frontend.request import GenerationRequest
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, request
from tests.harness.scripted_workers import Script, eventually, within

ANSWER = ids_of("the capital of France is Paris.")


def _stalled() -> Script:
    script = Script(ANSWER)
    script.steps.clear()
    return script


async def _run(client: GenerationClient, asked: GenerationRequest) -> None:
    async for _ in client.generate(asked):
        pass


def _start(running: Cluster, name: str, priority: Priority = Priority.NORMAL) -> "asyncio.Task[None]":
    asked = dataclasses.replace(request(), request_id=name, priority=priority)
    return asyncio.create_task(_run(running.client, asked), name=name)


async def _waiting(running: Cluster, count: int) -> None:
    await eventually(lambda: running.process.stats()["waiting_requests"] == count)


async def test_a_higher_class_is_asked_of_the_workers_first() -> None:
    """Of three that wait, the workers get the high one first and the low one last; they learn the class, too."""
    script = _stalled()
    async with cluster(script, max_running_requests=1) as running:
        tasks = [_start(running, "first")]
        await eventually(lambda: len(running.decode.requests) == 1)
        for count, name in enumerate(("low", "normal", "high"), start=1):
            tasks.append(_start(running, name, Priority[name.upper()]))
            await _waiting(running, count)
        script.steps.set()
        await within(asyncio.gather(*tasks))
        await running.idle()
        asked = running.decode.requests
        assert [each.request_id for each in asked] == ["first", "high", "normal", "low"]
        assert [priority_from_proto(each.priority).name for each in asked[1:]] == ["HIGH", "NORMAL", "LOW"]
        assert [each.priority for each in running.prefill.requests] == [each.priority for each in asked]


async def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    """A request that waits longer than --queue-ttl-s ends with QueueExpired and a hint, and no worker has seen it."""
    async with cluster(_stalled(), max_running_requests=1, queue_ttl_s=0.2) as running:
        first = _start(running, "first")
        await eventually(lambda: len(running.decode.requests) == 1)
        with pytest.raises(QueueExpired) as caught:
            await within(_start(running, "late"))
        assert caught.value.retry_after_s
        assert caught.value.details["reason"] == "expired"
        assert len(running.decode.requests) == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await running.idle()


async def test_a_low_request_makes_room_for_a_high_one() -> None:
    """In a full line the low request is turned away with a typed, retryable error, and the high one is served."""
    script = _stalled()
    async with cluster(script, max_running_requests=1, max_waiting_requests=1) as running:
        first = _start(running, "first")
        await eventually(lambda: len(running.decode.requests) == 1)
        low = _start(running, "low", Priority.LOW)
        await _waiting(running, 1)
        high = _start(running, "high", Priority.HIGH)
        with pytest.raises(QueueFull) as caught:
            await within(low)
        assert caught.value.details["reason"] == "displaced"
        script.steps.set()
        await within(asyncio.gather(first, high))


async def test_a_class_that_does_not_exist_is_named() -> None:
    """An unknown number in `priority` is an invalid request that names the field."""
    async with cluster(Script(ANSWER)) as running:
        message = request_to_proto(request())
        message.priority = 7  # type: ignore[assignment]
        error = await within(running.fails(running.raw(message)))
        assert "priority" in (error.details() or "")


@pytest.mark.parametrize("priority", Priority)
def test_every_class_survives_the_wire(priority: Priority) -> None:
    """What is sent is what arrives; unset means normal."""
    assert priority_from_proto(priority_to_proto(priority)) is priority
    assert priority_from_proto(0) is Priority.NORMAL  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        priority_from_proto(9)  # type: ignore[arg-type]
