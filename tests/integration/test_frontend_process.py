"""The frontend process: its other RPCs, slow clients, draining, metrics, and what it may import."""

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest
from baton.v1 import generation_pb2 as pb
from baton.v1 import types_pb2

from services.common.config import ConfigError
from services.common.errors import InvalidRequest
from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.request import ChatMessage, ChatPrompt, TextPrompt
from services.frontend.server import FrontendProcess
from tests.harness.scripted_frontend import cluster, frontend, ids_of, tokens_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within
from tests.harness.text_checkpoint import BOS, byte_level_tokenizer

MANY = 20_000
ANSWER = ids_of("the capital of France is Paris.")


async def test_tokenize_and_detokenize() -> None:
    """Text and chat become the ids that Generate uses, and ids become text again."""
    async with cluster(Script(ANSWER)) as running:
        ids = await running.client.tokenize(TextPrompt("hello"))
        await running.outputs("hello")
        assert tuple(running.prefill.requests[0].token_ids) == ids
        chat = await running.client.tokenize(ChatPrompt((ChatMessage("user", "hello"),)))
        whole = byte_level_tokenizer().decode(list(chat), skip_special_tokens=False)
        assert whole == f"{BOS}<|user|>hello\n<|assistant|>"
        assert await running.client.detokenize(chat) == "hello\n"


async def test_tokenize_and_detokenize_name_bad_fields() -> None:
    """Bad input to the other RPCs is INVALID_ARGUMENT with the field named, too."""
    async with cluster(Script(ANSWER)) as running:
        for call, field in [
            (running.client.tokenize(TextPrompt("")), "text"),
            (running.client.tokenize(TextPrompt("a"), model="x"), "model"),
            (running.client.detokenize(()), "token_ids"),
            (running.client.detokenize((2**31,)), "token_ids"),
        ]:
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert [violation.field for violation in caught.value.violations] == [field]


async def test_request_id_is_made_where_the_client_named_none() -> None:
    """Every message names the request; the workers get the same id."""
    async with cluster(Script(ANSWER)) as running:
        call = running.raw(pb.GenerateRequest(text="hello", sampling=types_pb2.SamplingParams(temperature=0)))
        names = {message.request_id async for message in call}
        assert names == {running.prefill.requests[0].request_id} == {running.decode.requests[0].request_id}
        assert all(names)


async def test_slow_client_holds_the_worker_back() -> None:
    """A client that stops reading makes the decode worker stop, far from the end of its tokens, and can go on later."""
    worker = _talkative()
    async with frontend([worker], stream_buffer_events=8) as running:
        await running.reachable(1)
        call = running.raw(pb.GenerateRequest(text="hello", sampling=types_pb2.SamplingParams(temperature=0)), 60.0)
        seen = len((await within(call.read())).deltas[0].tokens)
        await _stalls(worker)
        held = worker.decoded_tokens
        assert held < MANY // 2
        while seen <= held:
            seen += len((await within(call.read())).deltas[0].tokens)
        await eventually(lambda: worker.decoded_tokens > held)
        call.cancel()
        await within(worker.cancelled.wait())
        await running.idle()


def _talkative() -> ScriptedWorker:
    """A worker with far more to say than all buffers of the transport hold."""
    script = Script([ANSWER[0]] * MANY)
    script.num_logprobs = 400
    worker = ScriptedWorker(Tier.DECODE, script)
    worker.max_model_len = 2 * MANY
    return worker


async def _stalls(worker: ScriptedWorker) -> None:
    """Waits until the worker has emitted nothing for a while."""
    last, quiet_since = -1, time.monotonic()

    def is_quiet() -> bool:
        nonlocal last, quiet_since
        if worker.decoded_tokens != last:
            last, quiet_since = worker.decoded_tokens, time.monotonic()
        return time.monotonic() - quiet_since > 0.5

    await eventually(is_quiet, 30.0)


async def test_deadline_cuts_a_client_that_does_not_read() -> None:
    """A client that stops reading for good is cut off at its deadline, and the worker is free again."""
    worker = _talkative()
    async with frontend([worker], max_deadline_s=1.0) as running:
        await running.reachable(1)
        calls = []
        sample = running.process.registry.get_sample_value

        async def unread() -> None:
            message = pb.GenerateRequest(text="hello", sampling=types_pb2.SamplingParams(temperature=0))
            calls.append(running.raw(message, 600.0))
            ended = ("baton_frontend_requests_total", {"outcome": "DeadlineExceeded"})
            await eventually(lambda: sample(*ended) == len(calls))

        await running.until_asked(unread)
        await within(worker.cancelled.wait())
        # The status waits in the transport, behind what the client has not read, until the client reads or leaves.
        for call in calls:
            call.cancel()
        await running.idle()


async def test_drain_finishes_running_requests() -> None:
    """While draining, a running stream goes on to its end."""
    script = Script(ANSWER)
    script.steps.clear()
    async with cluster(script) as running, contextlib.aclosing(running.generate()) as outputs:
        first = await within(anext(outputs))
        drain = asyncio.create_task(running.process.drain(time.monotonic() + 60))
        await asyncio.sleep(0)
        script.steps.set()
        assert tokens_of([first, *[output async for output in outputs]]) == ANSWER
        await within(drain)


async def test_outcomes_are_counted() -> None:
    """Requests, routes and tokens show in the metrics by how they ended."""
    async with cluster(Script(ANSWER)) as running:
        await running.outputs()
        with pytest.raises(InvalidRequest):
            await running.outputs(n=0)
        sample = running.process.registry.get_sample_value
        assert sample("baton_frontend_requests_total", {"outcome": "ok"}) == 1
        assert sample("baton_frontend_requests_total", {"outcome": "InvalidRequest"}) == 1
        assert sample("baton_frontend_routes_total", {"kind": "split"}) == 1
        assert sample("baton_frontend_completion_tokens_sum") == len(ANSWER)
        assert sample("baton_frontend_duplicate_tokens_total") == 1
        assert sample("baton_frontend_time_to_first_token_seconds_count") == 1
        assert sample("baton_frontend_stage_seconds_count", {"stage": "handoff"}) == 1
        assert sample("baton_frontend_inflight_requests") == 0


async def test_without_workers_it_does_not_start() -> None:
    """A frontend that is told of no workers and no directory says what to set."""
    with pytest.raises(ConfigError, match="--directory"):
        FrontendProcess(FrontendSettings(port=0, metrics_port=0))


@pytest.mark.parametrize("workers", ["decode", "decode=nowhere", "other=127.0.0.1:1", "prefill=127.0.0.1:0"])
def test_bad_worker_lists_are_refused(workers: str) -> None:
    """What is not tier=host:port is refused when the settings are read."""
    with pytest.raises(ValueError, match="is not"):
        FrontendSettings(workers=workers)


def test_frontend_needs_no_torch() -> None:
    """The whole process imports with torch, transformers and numpy out of reach."""
    blocked = "import sys\nfor name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
    loads = "import services.frontend.__main__, services.cli.generate, services.cli.status\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + loads], capture_output=True, text=True, timeout=100, check=False,
        env={"PYTHONPATH": ".:protos", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
