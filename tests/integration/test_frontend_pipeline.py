"""The way of a request through a real frontend over scripted workers on real sockets."""

import asyncio
import contextlib

from services.common.convert import stages_from_proto
from services.common.rpc.stages import stages_from_metadata
from services.common.types import FinishReason, Tier
from services.frontend.convert import request_to_proto
from tests.harness.scripted_frontend import cluster, ids_of, request, text_of, tokens_of
from tests.harness.scripted_workers import DECODE_STAGES, PREFILL_STAGES, Script, within

ANSWER = ids_of("the capital of France is Paris.")


async def test_answer_is_text_tokens_and_a_completion() -> None:
    """A request through both legs gives the scripted tokens once each, their text, and says how it went."""
    async with cluster(Script(ANSWER)) as running:
        outputs = await running.outputs()
        assert tokens_of(outputs) == ANSWER
        assert text_of(outputs) == "the capital of France is Paris."
        completion = outputs[-1].completion
        assert completion is not None
        assert [output.completion for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert (completion.prefill_worker_id, completion.decode_worker_id) == ("prefill-0", "decode-1")
        assert not completion.colocated
        assert completion.usage.completion_tokens == len(ANSWER)
        assert completion.usage.prompt_tokens == len(ids_of("hello")) + 1
        assert completion.usage.cached_tokens == 1
        stages = completion.stages
        assert (stages.queue_ns, stages.prefill_ns) == (PREFILL_STAGES.queue_ns, PREFILL_STAGES.prefill_ns)
        assert (stages.handoff_ns, stages.decode_ns) == (DECODE_STAGES.handoff_ns, DECODE_STAGES.decode_ns)
        assert 0 < stages.ttft_ns <= stages.total_ns
        finishes = [delta.finish for output in outputs for delta in output.deltas if delta.finish]
        assert finishes == [FinishReason.STOP]


async def test_legs_are_tied_by_one_ticket() -> None:
    """Decode is told the ticket, the prefill worker and its incarnation; both legs get the same parameters."""
    async with cluster(Script(ANSWER)) as running:
        await running.outputs(temperature=1.0)
        prefill, decode = running.prefill.requests[0], running.decode.requests[0]
        assert prefill.ticket_id
        assert decode.handoff.ticket_id == prefill.ticket_id
        assert decode.handoff.worker_id == "prefill-0"
        assert decode.handoff.incarnation == running.prefill.incarnation
        assert decode.handoff.address == running.prefill.address
        assert decode.sampling == prefill.sampling
        assert decode.token_ids == prefill.token_ids
        assert prefill.sampling.HasField("seed")


async def test_first_token_does_not_wait_for_the_handoff() -> None:
    """The first token reaches the client while decode still has said nothing."""
    script = Script(ANSWER)
    script.handoff.clear()
    async with cluster(script) as running, contextlib.aclosing(running.generate()) as outputs:
        first = await within(anext(outputs))
        assert tokens_of([first]) == ANSWER[:1]
        assert running.decode.decoded_tokens == 0
        script.handoff.set()
        rest = [output async for output in outputs]
        assert tokens_of([first, *rest]) == ANSWER


async def test_first_token_comes_from_decode_where_that_is_first() -> None:
    """A slow answer of the prefill leg does not hold back what decode has delivered already."""
    script = Script(ANSWER)
    script.first_token.clear()
    async with cluster(script) as running, contextlib.aclosing(running.generate()) as outputs:
        first = await within(anext(outputs))
        assert tokens_of([first])[:1] == ANSWER[:1]
        script.first_token.set()
        rest = [output async for output in outputs]
        assert tokens_of([first, *rest]) == ANSWER


async def test_one_token_needs_prefill_alone() -> None:
    """With max_tokens 1 no ticket is made and no decode worker is asked."""
    async with cluster(Script(ANSWER)) as running:
        outputs = await running.outputs(max_tokens=1)
        assert tokens_of(outputs) == ANSWER[:1]
        completion = outputs[-1].completion
        assert completion is not None
        assert (completion.prefill_worker_id, completion.decode_worker_id) == ("prefill-0", "")
        assert running.prefill.requests[0].ticket_id == ""
        assert not running.decode.requests


async def test_request_that_ends_with_its_first_token_does_not_wait_for_decode() -> None:
    """Where the first token is the last, the answer is complete while decode still waits; its leg is withdrawn."""
    script = Script(ANSWER[:1])
    script.first_token.clear()
    script.handoff.clear()
    async with cluster(script) as running:
        answer = asyncio.create_task(running.outputs())
        await within(running.decode.asked.wait())
        script.first_token.set()
        outputs = await answer
        assert tokens_of(outputs) == ANSWER[:1]
        completion = outputs[-1].completion
        assert completion is not None
        assert completion.decode_worker_id == ""
        await within(running.decode.cancelled.wait())
        await within(running.prefill.was_released.wait())
        assert running.prefill.released == [running.prefill.requests[0].ticket_id]


async def test_without_a_prefill_worker_decode_runs_the_prompt() -> None:
    """A decode worker alone serves the request, and the completion says so."""
    async with cluster(Script(ANSWER), (Tier.DECODE,)) as running:
        outputs = await running.outputs()
        assert tokens_of(outputs) == ANSWER
        completion = outputs[-1].completion
        assert completion is not None
        assert completion.colocated
        assert completion.prefill_worker_id == completion.decode_worker_id == "decode-0"
        assert not running.decode.requests[0].HasField("handoff")


async def test_choices_are_kept_apart() -> None:
    """With n > 1 each choice gets its own tokens, text and end."""
    other = ids_of("hello world")
    async with cluster(Script(ANSWER, other)) as running:
        outputs = await running.outputs(n=2)
        assert tokens_of(outputs, 0) == ANSWER
        assert tokens_of(outputs, 1) == other
        assert text_of(outputs, 1) == "hello world"
        completion = outputs[-1].completion
        assert completion is not None
        assert completion.usage.completion_tokens == len(ANSWER) + len(other)


async def test_stop_string_ends_the_request_on_both_workers() -> None:
    """A stop string over token borders cuts the text before it, and decode is withdrawn instead of running on."""
    script = Script(ANSWER * 4)
    script.end.clear()
    async with cluster(script) as running:
        outputs = await running.outputs(stop=("France is",), max_tokens=60)
        assert text_of(outputs) == "the capital of "
        last = next(delta for output in outputs for delta in output.deltas if delta.finish)
        assert (last.finish, last.stop_match) == (FinishReason.STOP, "France is")
        completion = outputs[-1].completion
        assert completion is not None
        assert completion.decode_worker_id == "decode-1"
        assert completion.usage.completion_tokens == len(tokens_of(outputs))
        assert completion.stages.decode_ns > 0, "measured here, because decode was stopped before it could say"
        await within(running.decode.cancelled.wait())


async def test_seed_is_drawn_and_reported() -> None:
    """An unset seed is drawn for both legs and comes back in the completion; a given one is kept."""
    async with cluster(Script(ANSWER)) as running:
        drawn = (await running.outputs(temperature=0.7))[-1].completion
        assert drawn is not None
        assert drawn.seed == running.prefill.requests[0].sampling.seed
        given = (await running.outputs(temperature=0.7, seed=2**64 - 1))[-1].completion
        assert given is not None
        assert given.seed == 2**64 - 1


async def test_output_is_bounded_by_the_context() -> None:
    """Without max_tokens both legs are told what the context leaves."""
    async with cluster(Script(ANSWER)) as running:
        await running.outputs(max_tokens=None)
        prompt = len(running.prefill.requests[0].token_ids)
        assert running.prefill.requests[0].sampling.max_tokens == 64 - prompt
        assert running.decode.requests[0].sampling.max_tokens == 64 - prompt


async def test_stage_times_are_in_the_trailing_metadata_too() -> None:
    """Clients that only see metadata, such as proxies, learn the same times as the completion tells."""
    async with cluster(Script(ANSWER)) as running:
        call = running.raw(request_to_proto(request()))
        messages = [message async for message in call]
        told = stages_from_metadata(await call.trailing_metadata())
        stages = stages_from_proto(messages[-1].completion.stages)
        assert (told.queue_ns, told.decode_ns, told.ttft_ns) == (stages.queue_ns, stages.decode_ns, stages.ttft_ns)


async def test_logprobs_come_through() -> None:
    """What the workers report of a token's probability reaches the client unchanged."""
    script = Script(ANSWER)
    script.num_logprobs = 3
    async with cluster(script) as running:
        outputs = await running.outputs(logprobs=3)
        tokens = [token for output in outputs for delta in output.deltas for token in delta.tokens]
        assert all(token.top_logprobs == ((0, -1.0), (1, -1.0), (2, -1.0)) for token in tokens)
        assert running.decode.requests[0].sampling.logprobs == 3
