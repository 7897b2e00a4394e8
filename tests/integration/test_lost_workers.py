"""What a request does when its worker falls silent, is replaced, or fails again and again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from services.common.errors import ChannelBroken, PeerUnreachable
from services.common.types import Tier
from services.frontend.fallback import Fallback
from services.frontend.request import Completion, Output
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, within

ANSWER = ids_of("the capital of France is Paris.")
TWO_DECODES = (Tier.PREFILL, Tier.DECODE, Tier.DECODE)


def _counted(running: Cluster, name: str, **labels: str) -> float:
    return running.process.registry.get_sample_value(f"baton_frontend_{name}_total", labels) or 0.0


async def _rest(outputs: AsyncIterator[Output], *before: Output) -> list[Output]:
    return [*before, *[output async for output in outputs]]


def _completion(outputs: list[Output]) -> Completion:
    completion = outputs[-1].completion
    assert completion is not None
    return completion


def _busy(running: Cluster) -> tuple[ScriptedWorker, ScriptedWorker]:
    """The decode worker that has the request, and the other one."""
    first, second = (worker for worker in running.workers if worker.tier is Tier.DECODE)
    return (first, second) if first.requests else (second, first)


@pytest.mark.parametrize("how", ["silent", "replaced"])
async def test_worker_that_is_lost_gives_its_requests_up_at_once(how: str) -> None:
    """Silent or replaced while its calls hang: what ran there moves without waiting for TCP, in one stream."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script, TWO_DECODES) as running, contextlib.aclosing(running.generate()) as outputs:
        first = await within(anext(outputs))
        busy, spare = _busy(running)
        await within(busy.asked.wait())
        spare.script = Script(ANSWER)
        if how == "silent":
            busy.fall_silent()
        else:
            busy.incarnation = "another"  # as the static source will find out
        rest = await within(_rest(outputs, first))
        assert tokens_of(rest) == ANSWER
        assert _completion(rest).moves == 1
        assert _completion(rest).decode_worker_id == spare.worker_id
        assert _completion(rest).fallback is Fallback.MIGRATION
        assert _counted(running, "fallbacks", reason="migration") == 1
        await within(busy.cancelled.wait())
        script.steps.set()


async def test_stream_that_stalls_is_moved() -> None:
    """A worker that lives but brings no token for longer than the stall timeout loses the request to another one."""
    script = Script(ANSWER)
    script.hold_at = 3
    script.steps.clear()
    async with (
        cluster(script, TWO_DECODES, stall_timeout_s=2.0) as running,
        contextlib.aclosing(running.generate()) as outputs,
    ):
        first = await within(anext(outputs))
        busy, spare = _busy(running)
        spare.script = Script(ANSWER)
        rest = await within(_rest(outputs, first))
        assert tokens_of(rest) == ANSWER
        assert _completion(rest).moves == 1
        await within(busy.cancelled.wait())
        assert _counted(running, "moves", kind="migration") == 1


async def test_used_up_budget_ends_requests_with_their_own_cause() -> None:
    """Without budget a failed request is not moved: the client gets the failure, and the refusal is counted."""
    script = Script(ANSWER)
    script.decode_error = ChannelBroken("gone")
    script.decode_error_at = 2
    async with cluster(script, TWO_DECODES, retry_ratio=0, retries_per_s=0) as running:
        with pytest.raises(ChannelBroken) as caught:
            await running.outputs()
        assert caught.value.details["not_moved"] == "retry_budget"
        assert _counted(running, "moves_refused", reason="retry_budget") == 1
        assert _counted(running, "moves", kind="migration") == 0
        await running.idle()


async def test_same_workers_are_asked_again_only_within_the_deadline() -> None:
    """Where only the workers are left that failed, the request pauses before each new try, and ends by its cause."""
    script = Script(ANSWER)
    script.decode_error = ChannelBroken("gone")
    async with cluster(script, max_moves=2) as running:
        started = asyncio.get_running_loop().time()
        with pytest.raises(ChannelBroken) as caught:
            await running.outputs()
        assert asyncio.get_running_loop().time() - started >= 0.05 + 0.1
        assert caught.value.details["not_moved"] == "max_moves"
        assert len(running.decode.requests) == 3


async def test_missing_prefill_tier_is_marked_and_counted() -> None:
    """With no prefill worker decode runs the prompt, and both the answer and a counter say why."""
    async with cluster(Script(ANSWER), (Tier.PREFILL, Tier.DECODE)) as running:
        assert _completion(await running.outputs()).fallback is Fallback.NONE
        await running.prefill.stop()
        await running.reachable(1)
        completion = _completion(await running.outputs())
        assert completion.fallback is Fallback.NO_PREFILL_WORKER
        assert completion.colocated
        assert completion.moves == 0
        assert _counted(running, "fallbacks", reason="no_prefill_worker") == 1


async def test_lost_worker_with_no_other_is_a_typed_error_at_once() -> None:
    """The only decode worker falls silent: the client learns why right away, not at its deadline."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script) as running, contextlib.aclosing(running.generate()) as outputs:
        await within(anext(outputs))
        running.decode.fall_silent()
        with pytest.raises(PeerUnreachable, match="was lost"):
            await within(_rest(outputs))
        script.steps.set()
        await running.idle()
