"""What clients can send wrong over the public API: refused by name, with nothing else affected."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from baton.v1 import generation_pb2 as pb

from services.common.errors import BatonError, Code, InvalidRequest
from services.common.rpc.channel import rpc_errors
from services.common.sampling import SamplingParams
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import Processes, processes

PROMPT = random_prompt(20, seed=2)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
NAN = float("nan")

TOKENS = pb.TokenPrompt(token_ids=PROMPT)
BAD = {
    "no prompt": (pb.GenerateRequest(), "prompt"),
    "empty text": (pb.GenerateRequest(text=""), "text"),
    "no tokens": (pb.GenerateRequest(tokens=pb.TokenPrompt()), "tokens"),
    "too many tokens": (pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[5] * 5000)), "tokens"),
    "token out of range": (pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[999])), "tokens"),
    "no messages": (pb.GenerateRequest(chat=pb.ChatPrompt()), "chat"),
    "unknown model": (pb.GenerateRequest(tokens=TOKENS, model="other"), "model"),
    "long id": (pb.GenerateRequest(tokens=TOKENS, request_id="x" * 200), "request_id"),
    "control characters": (pb.GenerateRequest(tokens=TOKENS, request_id="a\nb"), "request_id"),
    "negative temperature": (pb.GenerateRequest(tokens=TOKENS, sampling={"temperature": -1}), "temperature"),
    "NaN temperature": (pb.GenerateRequest(tokens=TOKENS, sampling={"temperature": NAN}), "temperature"),
    "NaN top_p": (pb.GenerateRequest(tokens=TOKENS, sampling={"top_p": NAN}), "top_p"),
    "negative max_tokens": (pb.GenerateRequest(tokens=TOKENS, sampling={"max_tokens": -5}), "max_tokens"),
    "negative top_k": (pb.GenerateRequest(tokens=TOKENS, sampling={"top_k": -1}), "top_k"),
    "no choices": (pb.GenerateRequest(tokens=TOKENS, sampling={"n": 0}), "n"),
    "bias out of range": (pb.GenerateRequest(tokens=TOKENS, sampling={"logit_bias": {9999: 1.0}}), "logit_bias"),
    "NaN bias": (pb.GenerateRequest(tokens=TOKENS, sampling={"logit_bias": {3: NAN}}), "logit_bias"),
    "empty stop string": (pb.GenerateRequest(tokens=TOKENS, sampling={"stop": [""]}), "stop"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    """One split cluster for all of these."""
    folder = tmp_path_factory.mktemp("bad-input")
    async with processes(tiny_checkpoint("llama"), folder, {"prefill": 1, "decode": 1}) as running:
        yield running


async def send(cluster: Processes, body: bytes) -> None:
    """Sends raw bytes to Generate and reads the stream to its end."""
    async with grpc.aio.insecure_channel(
        cluster.address("frontend-0"), options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        call = channel.unary_stream("/baton.v1.GenerationService/Generate")(body, timeout=30)
        with rpc_errors("frontend"):
            async for _ in call:
                pass


@contextlib.asynccontextmanager
async def undisturbed(cluster: Processes) -> AsyncIterator[None]:
    """A good request runs meanwhile and gets its right tokens; afterwards nothing is held anywhere."""
    good = asyncio.create_task(cluster.ask(PROMPT, GREEDY))
    yield
    assert (await good).tokens[0] == reference_tokens(tiny_checkpoint("llama"), PROMPT, 24)
    await cluster.workers_at_rest()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", BAD)
async def test_bad_fields_are_named(cluster: Processes, case: str):
    """INVALID_ARGUMENT names the field; a request beside it is not disturbed."""
    message, field = BAD[case]
    async with undisturbed(cluster):
        with pytest.raises(InvalidRequest) as caught:
            await send(cluster, message.SerializeToString())
    assert any(field in violation.field for violation in caught.value.violations)


@pytest.mark.asyncio(loop_scope="module")
async def test_invalid_utf8_is_named(cluster: Processes):
    """Text that is not UTF-8 is the client's mistake, not an internal error."""
    async with undisturbed(cluster):
        with pytest.raises(InvalidRequest) as caught:
            await send(cluster, b"\x1a\x03\xff\xfe\xfd")
    assert caught.value.violations[0].field == "text"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x1a\x7fshort", b"\x32\x02\x0d\x00"])
async def test_garbage_is_refused(cluster: Processes, body: bytes):
    """Bytes that are no message at all are refused as such."""
    async with undisturbed(cluster):
        with pytest.raises(InvalidRequest):
            await send(cluster, body)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hundred_megabytes_are_refused(cluster: Processes):
    """A message far beyond the limit is refused before it is taken apart."""
    async with undisturbed(cluster):
        with pytest.raises(BatonError) as caught:
            await send(cluster, pb.GenerateRequest(text="x" * 100_000_000).SerializeToString())
    assert caught.value.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT)
