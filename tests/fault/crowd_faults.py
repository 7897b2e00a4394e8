"""What clients can do to a cluster: come all at once, or stop reading (F15, F23)."""

import asyncio
import contextlib

import pytest

from services.common.errors import SlowReader
from services.common.sampling import SamplingParams
from services.frontend.client import GenerationClient, deadline_in
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
UNREAD_TOKENS = 200
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
    sampling = SamplingParams(temperature=0.0, max_tokens=UNREAD_TOKENS, ignore_eos=True)
    request = GenerationRequest(
        request_id="unread", prompt=TokenPrompt(tuple(prompt(0, 48))), sampling=sampling, deadline=deadline_in(60.0)
    )
    async with (
        GenerationClient(scene.cluster.address("frontend-0")) as client,
        contextlib.aclosing(client.generate(request)) as answer,
    ):
        await anext(answer)
        scene.did()
        await scene.ended(Part.COMPANION)
        async with asyncio.timeout(READ_LIMIT_S + 5.0):
            await _nothing_held(scene)
        with pytest.raises(SlowReader):
            _ = [piece async for piece in answer]


async def _nothing_held(scene: Scene) -> None:
    """Waits until no process holds anything of any request."""
    while True:
        states = [await scene.cluster.state(name) for name in scene.cluster.names()]
        if not any(owns(state) for state in states):
            return
        await asyncio.sleep(LOOK_S)
