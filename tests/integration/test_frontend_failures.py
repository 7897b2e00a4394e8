"""What the client of a real frontend gets when workers fail or what it sent is wrong."""

import asyncio
import contextlib
from typing import Any

import pytest
from baton.v1 import generation_pb2 as pb
from baton.v1 import types_pb2

from services.common.errors import (
    BatonError,
    ChannelBroken,
    Internal,
    InvalidRequest,
    KvCorrupt,
    NoWorker,
    PeerUnreachable,
    QueueFull,
)
from services.common.rpc.stages import stages_from_metadata
from services.common.rpc.status import from_rpc_error
from services.common.types import Load, Tier
from services.frontend.request import Output, TextPrompt
from tests.harness.scripted_frontend import Cluster, cluster, ids_of, tokens_of
from tests.harness.scripted_workers import PREFILL_STAGES, Script, eventually, within

ANSWER = ids_of("the capital of France is Paris.")


async def _error(running: Cluster, message: pb.GenerateRequest) -> BatonError:
    return from_rpc_error(await within(running.fails(running.raw(message))), "the frontend")


@pytest.mark.parametrize(
    "error",
    [QueueFull("no room", retry_after_s=0.5), InvalidRequest([]), PeerUnreachable("gone"), Internal("bug 1")],
    ids=lambda error: type(error).__name__,
)
async def test_prefill_error_reaches_the_client_typed(error: BatonError) -> None:
    """An error of the prefill leg comes out as it is and names the worker; decode is withdrawn."""
    script = Script(ANSWER)
    script.error = error
    script.handoff.clear()
    script.first_token.clear()
    async with cluster(script) as running:
        answer = asyncio.create_task(running.outputs())
        await within(running.decode.asked.wait())  # a leg that never got there could not be seen to be withdrawn
        script.first_token.set()
        with pytest.raises(type(error)) as caught:
            await answer
        assert caught.value.details["worker_id"] == "prefill-0"
        assert caught.value.retry_after_s == error.retry_after_s
        await within(running.decode.cancelled.wait())
        await running.idle()


@pytest.mark.parametrize("at", [0, 2])
async def test_decode_error_reaches_the_client_typed(at: int) -> None:
    """An error of the decode leg ends the request, before its first token or later; earlier tokens were right."""
    script = Script(ANSWER)
    script.decode_error = KvCorrupt("checksum differs") if at == 0 else ChannelBroken("gone")
    script.decode_error_at = at
    async with cluster(script) as running:
        seen: list[Output] = []
        with pytest.raises(type(script.decode_error)) as caught:
            await _read_into(seen, running)
        assert caught.value.details["worker_id"] == "decode-1"
        tokens = tokens_of(seen)
        assert tokens == ANSWER[: len(tokens)]
        assert all(output.completion is None for output in seen)
        await running.idle()
        # A leg that was withdrawn on its way to the worker has its ticket given back, too.
        assert {request.ticket_id for request in running.prefill.requests} <= set(running.prefill.released)
        assert running.prefill.released


async def _read_into(seen: list[Output], running: Cluster) -> None:
    async for output in running.generate():
        seen.append(output)


async def test_tokens_that_do_not_agree_end_the_request() -> None:
    """Where the legs name different tokens for one index the request fails instead of showing a wrong one."""
    async with cluster(Script(ANSWER)) as running:
        running.decode.script = Script([ANSWER[0] + 1, *ANSWER[1:]])
        running.decode.script.handoff.clear()
        outputs = running.generate()
        assert tokens_of([await anext(outputs)]) == ANSWER[:1]
        running.decode.script.handoff.set()
        with pytest.raises(Internal, match="do not fit together"):
            await anext(outputs)


@pytest.mark.parametrize("max_tokens", [1, 32])
async def test_worker_that_ends_without_a_finish_is_an_error(max_tokens: int) -> None:
    """A worker that reports its end but left a choice open does not leave the client waiting."""
    async with cluster(Script(ANSWER, finish=None)) as running:
        running.prefill.script = running.decode.script = Script(ANSWER[:1], finish=None)
        with pytest.raises(Internal, match="before all its choices"):
            await running.outputs(max_tokens=max_tokens)
        await running.idle()


async def test_prefill_that_dies_before_its_answer_is_an_error() -> None:
    """A prefill worker killed with the prompt half run ends a request that may not move as PeerUnreachable, soon."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script, max_moves=0) as running:
        await _killed_while_asked(running, Tier.PREFILL)


async def test_decode_that_dies_is_an_error() -> None:
    """A decode worker killed between two tokens ends the request as PeerUnreachable."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script) as running:
        await _killed_while_asked(running, Tier.DECODE)


async def _killed_while_asked(running: Cluster, tier: Tier) -> None:
    call = running.raw(_asking())
    for worker in running.workers:
        await within(worker.asked.wait())
    await running.worker(tier).stop()
    error = from_rpc_error(await within(running.fails(call)), "the frontend")
    assert isinstance(error, PeerUnreachable)
    await running.idle()


async def test_prefill_that_dies_after_the_handoff_does_no_harm() -> None:
    """Once decode has the KV, the death of the prefill worker changes nothing for the request."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.hold_at = 3
    script.steps.clear()
    async with cluster(script) as running, contextlib.aclosing(running.generate()) as outputs:
        first = await within(anext(outputs))
        await running.prefill.stop()
        await running.reachable(1)
        script.steps.set()
        assert tokens_of([first, *[output async for output in outputs]]) == ANSWER


async def test_stage_times_of_a_failed_request_are_in_the_trailing_metadata() -> None:
    """A request that fails in decode still says how long queue and prefill took."""
    script = Script(ANSWER)
    script.decode_error = ChannelBroken("gone")
    script.handoff.clear()
    async with cluster(script) as running:
        call = running.raw(pb.GenerateRequest(text="hello"))
        assert (await within(call.read())).deltas
        script.handoff.set()
        error = await within(running.fails(call))
        stages = stages_from_metadata(error.trailing_metadata())
        assert (stages.queue_ns, stages.prefill_ns) == (PREFILL_STAGES.queue_ns, PREFILL_STAGES.prefill_ns)
        assert 0 < stages.ttft_ns <= stages.total_ns


async def test_full_frontend_refuses_with_a_hint() -> None:
    """Beyond what may run and wait a request is refused at once, and told when to come back."""
    script = Script(ANSWER)
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script, max_running_requests=1, max_waiting_requests=0) as running:
        call = running.raw(pb.GenerateRequest(text="hello"))
        await within(running.prefill.asked.wait())
        error = await _error(running, pb.GenerateRequest(text="hello"))
        assert isinstance(error, QueueFull)
        assert error.retry_after_s
        call.cancel()
        await running.idle()


async def test_no_worker_is_a_retryable_error() -> None:
    """Without a usable worker the answer comes at once, typed, with a hint when to try again."""
    async with cluster(Script(ANSWER)) as running:
        running.decode.report(Load(free_blocks=64, total_blocks=64, draining=True))
        await eventually(lambda: not running.process.members.snapshot().can_serve)
        error = await _error(running, pb.GenerateRequest(text="hello"))
        assert isinstance(error, NoWorker)
        assert error.retry_after_s


def _asking(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"text": "hello", **fields})


def _sampling(**fields: Any) -> pb.GenerateRequest:
    return _asking(sampling=types_pb2.SamplingParams(**fields))


BAD_INPUTS = [
    (pb.GenerateRequest(), "prompt"),
    (_asking(text=""), "text"),
    (_asking(text="x" * 2000), "text"),
    (_asking(text="x y " * 300), "text"),
    (pb.GenerateRequest(chat=pb.ChatPrompt()), "chat.messages"),
    (pb.GenerateRequest(chat=pb.ChatPrompt(messages=[pb.ChatMessage(content="a")])), "chat.messages[0].role"),
    (pb.GenerateRequest(chat=pb.ChatPrompt(messages=[pb.ChatMessage(role="tool", content="a")])), "chat"),
    (pb.GenerateRequest(tokens=pb.TokenPrompt()), "tokens.token_ids"),
    (pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[1, 2**31])), "tokens.token_ids"),
    (pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[5] * 64)), "tokens.token_ids"),
    (_asking(model="another"), "model"),
    (_asking(request_id="ä"), "request_id"),
    (_asking(request_id="a" * 129), "request_id"),
    (_asking(cache_salt="\n"), "cache_salt"),
    (_asking(session_id="\n"), "session_id"),
    (_sampling(temperature=float("nan")), "sampling.temperature"),
    (_sampling(temperature=-1), "sampling.temperature"),
    (_sampling(top_p=0), "sampling.top_p"),
    (_sampling(presence_penalty=float("inf")), "sampling.presence_penalty"),
    (_sampling(max_tokens=0), "sampling.max_tokens"),
    (_sampling(max_tokens=2, min_tokens=3), "sampling.min_tokens"),
    (_sampling(n=17), "sampling.n"),
    (_sampling(stop=[""]), "sampling.stop"),
    (_sampling(stop_token_ids=[2**31]), "sampling.stop_token_ids"),
    (_sampling(logit_bias={3: float("nan")}), "sampling.logit_bias"),
]


async def test_bad_input_names_its_field_and_reaches_no_worker() -> None:
    """Every kind of bad input is INVALID_ARGUMENT with the field named, and no worker is asked."""
    async with cluster(Script(ANSWER), max_prompt_bytes=1500) as running:
        for message, field in BAD_INPUTS:
            error = await _error(running, message)
            assert isinstance(error, InvalidRequest), (field, error)
            assert [violation.field for violation in error.violations] == [field]
        assert not running.prefill.requests
        assert not running.decode.requests


async def test_all_wrong_fields_are_named_at_once() -> None:
    """A client learns of all its mistakes from one answer."""
    async with cluster(Script(ANSWER)) as running:
        message = _asking(model="another", sampling=types_pb2.SamplingParams(top_p=2, n=0))
        error = await _error(running, message)
        assert isinstance(error, InvalidRequest)
        assert [each.field for each in error.violations] == ["model", "sampling.top_p", "sampling.n"]


async def test_a_text_that_the_tokenizer_raises_for_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client learns that it is a bug and gets the id of the log's entry; others are served, and nothing is left."""
    async with cluster(Script(ANSWER)) as running:
        tokenizer = running.process._tokenizer
        encode = tokenizer._encode

        def raise_for_one(prompt: TextPrompt) -> tuple[int, ...]:
            if prompt.text == "poison":
                raise RuntimeError("index out of range")  # as of the library, which raises what it likes
            return encode(prompt)

        monkeypatch.setattr(tokenizer, "_encode", raise_for_one)
        asked = [running.outputs(text) for text in ("hello", "poison", "hello")]
        before, failure, after = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failure, Internal)
        assert "index" not in failure.message
        assert tokens_of(before) == tokens_of(after) == ANSWER
        with pytest.raises(Internal):
            await within(running.client.tokenize(TextPrompt("poison")))
        await running.idle()
        assert len(running.decode.requests) == 2
