"""How long the requests of a killed worker wait until they go on elsewhere, in real processes under load."""

import asyncio
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common.sampling import SamplingParams
from services.frontend.client import deadline_in
from services.frontend.request import GenerationRequest, TokenPrompt
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import Processes, processes
from tests.harness.tiers import until

PROMPTS = [[i + 3, *random_prompt(80, seed=5)] for i in range(16)]
SAMPLING = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
MOST_S = 3.0


@dataclass
class Stream:
    """What came of one request, and when."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    moves: int = 0

    def waited_s(self, since: float) -> float:
        """The longest wait for a token after `since`; what was on its way then came at once."""
        times = [since, *(at for at in self.times if at > since)]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


async def _read(cluster: Processes, prompt: list[int], stream: Stream) -> None:
    request = GenerationRequest(
        request_id="", prompt=TokenPrompt(tuple(prompt)), sampling=SAMPLING, deadline=deadline_in(60)
    )
    async for output in cluster.client.generate(request):
        for delta in output.deltas:
            stream.tokens.extend(token.id for token in delta.tokens)
        if output.deltas:
            stream.times.append(time.monotonic())
        if output.completion is not None:
            stream.moves = output.completion.moves


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
async def test_requests_of_a_killed_worker_go_on_within_seconds(victim: str, tmp_path: Path):
    """SIGKILL under load: every affected stream goes on in less than three seconds, with the right tokens."""
    checkpoint = tiny_checkpoint("llama")
    async with processes(checkpoint, tmp_path, {"prefill": 2, "decode": 2}) as cluster:
        await cluster.ask(PROMPTS[0], SAMPLING)
        streams = [Stream() for _ in PROMPTS]
        reading = [
            asyncio.create_task(_read(cluster, prompt, stream)) for prompt, stream in zip(PROMPTS, streams, strict=True)
        ]
        await until(lambda: any(stream.times for stream in streams))
        killed = time.monotonic()
        os.kill(cluster.by_name[victim].pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*reading), 60)
        for prompt, stream in zip(PROMPTS, streams, strict=True):
            assert stream.tokens == reference_tokens(checkpoint, prompt, 64)
        moved = [stream for stream in streams if stream.moves]
        # A prefill worker may have handed everything over by then; a decode worker still has streams.
        assert moved or victim.startswith("prefill")
        longest = max((stream.waited_s(killed) for stream in moved), default=0.0)
        sys.stdout.write(f"{victim}: {len(moved)} of {len(streams)} moved, waited up to {longest:.2f} s\n")
        assert longest < MOST_S
