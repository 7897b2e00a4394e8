"""What clients can do to a cluster: come all at once, or stop reading (F15, F23)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from baton.v1 import generation_pb2_grpc as rpc

from services.common.errors import SlowReader
from services.common.rpc.channel import rpc_errors
from services.common.sampling import SamplingParams
from services.frontend.client import deadline_in
from services.frontend.convert import output_from_proto, request_to_proto
from services.frontend.request import GenerationRequest, TokenPrompt
from tests.fault.checks import owns
from tests.fault.clients import prompt
from tests.fault.evidence import Part
from tests.fault.scenario import Fault, Scene

# One request of 48 and 24 tokens takes 18 blocks of 4 at decode, 12 at prefill; a full pool has no room for a second.
FULL_POOL = 20
FULL = 12
CROWD = 24
READ_LIMIT_S = 1.0
# More than gRPC takes off a server's hands: large messages, and a client whose window is as small as can be.
UNREAD_TOKENS, UNREAD_CHOICES, UNREAD_LOGPROBS = 200, 2, 20
SMALL_WINDOW = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.use_local_subchannel_pool", 1),
]
UNREAD_S = 60.0
LOOK_S = 0.05


def crowd(role: str) -> Fault:
    """So many requests come at once that the pools of a role are full for as long as they run."""

    async def come(scene: Scene) -> None:
        scene.did()
        scene.ask(Part.SUBJECT, CROWD)
        ending = asyncio.create_task(scene.ended(Part.SUBJECT))
        most = 0
        while not ending.done():
            for name in scene.cluster.names(role):
                most = max(most, (await scene.cluster.state(name)).counts["blocks_held"])
            await asyncio.wait({ending}, timeout=LOOK_S)
        assert FULL <= most <= FULL_POOL, f"no pool was full: {most} blocks at most"

    return come


async def stop_reading(scene: Scene) -> None:
    """A client reads one piece of its answer and no more: at the limit nobody holds anything for it."""
    asked = prompt(0, 48)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=UNREAD_TOKENS, n=UNREAD_CHOICES, logprobs=UNREAD_LOGPROBS, ignore_eos=True
    )
    request = GenerationRequest(
        request_id="unread", prompt=TokenPrompt(tuple(asked)), sampling=sampling, deadline=deadline_in(UNREAD_S)
    )
    async with _narrow_call(scene.cluster.address("frontend-0"), request) as call:
        pieces = [await call.read()]
        scene.did()
        await scene.ended(Part.COMPANION)
        async with asyncio.timeout(READ_LIMIT_S + 5.0 if scene.cluster.is_timing_exact else UNREAD_S):
            await _nothing_held(scene)
        with pytest.raises(SlowReader):
            await _read_on(call, pieces)
    expected = scene.cluster.expected(asked, sampling)
    for choice, tokens in _tokens(pieces).items():
        known = expected[choice][: len(tokens)]
        assert tokens[: len(known)] == known, f"got wrong tokens: {tokens} for {known}"


@contextlib.asynccontextmanager
async def _narrow_call(address: str, request: GenerationRequest) -> AsyncIterator[Any]:
    """A call over a connection of its own, whose window is small and does not grow."""
    async with grpc.aio.insecure_channel(address, options=SMALL_WINDOW) as channel:
        call = rpc.GenerationServiceStub(channel).Generate(request_to_proto(request), timeout=UNREAD_S)
        try:
            yield call
        finally:
            call.cancel()


async def _read_on(call: Any, pieces: list[Any]) -> None:
    """Reads what is left, to the end of the call."""
    with rpc_errors("frontend"):
        while (piece := await call.read()) is not grpc.aio.EOF:
            pieces.append(piece)


def _tokens(pieces: list[Any]) -> dict[int, list[int]]:
    """Token ids by choice."""
    found: dict[int, list[int]] = {}
    for piece in pieces:
        for delta in output_from_proto(piece).deltas:
            found.setdefault(delta.choice, []).extend(token.id for token in delta.tokens)
    return found


async def _nothing_held(scene: Scene) -> None:
    """Waits until no process holds anything of any request."""
    while True:
        states = [await scene.cluster.state(name) for name in scene.cluster.names()]
        if not any(owns(state) for state in states):
            return
        await asyncio.sleep(LOOK_S)
