"""How a request is asked and its answer comes: of a frontend, or of one worker without a frontend."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.rpc.channel import open_channel
from services.common.sampling import SamplingParams
from services.common.types import StageTimes, Usage, WorkRequest
from services.decode.client import DecodeClient
from services.frontend.client import GenerationClient
from services.frontend.request import GenerationRequest, TokenPrompt


@dataclass(frozen=True, slots=True)
class Told:
    """What the last message of an answer tells; `colocated` where one worker ran it all, `hedged` where two tried."""

    stages: StageTimes
    usage: Usage
    colocated: bool = False
    hedged: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens of an answer that came at once."""

    num_tokens: int
    told: Told | None = None


class Answers(Protocol):
    """Who is asked."""

    def ask(self, prompt: Sequence[int], output_tokens: int, deadline: float) -> AsyncGenerator[Piece]:
        """Streams a greedy answer of fixed length.

        Raises:
            BatonError: the request failed.
        """
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


class FrontendAnswers:
    """Asks a frontend."""

    def __init__(self, address: str) -> None:
        self._client = GenerationClient(address)

    async def ask(self, prompt: Sequence[int], output_tokens: int, deadline: float) -> AsyncGenerator[Piece]:
        """See `Answers`."""
        request = GenerationRequest(
            request_id="", prompt=TokenPrompt(tuple(prompt)), sampling=_greedy(output_tokens), deadline=deadline
        )
        async for output in self._client.generate(request):
            done = output.completion
            told = Told(done.stages, done.usage, done.colocated, done.hedged) if done else None
            yield Piece(sum(len(delta.tokens) for delta in output.deltas), told)

    async def close(self) -> None:
        """See `Answers`."""
        await self._client.close()


class WorkerAnswers:
    """Asks one decode or colocated worker for whole requests."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._client = DecodeClient(self._channel, f"the worker at {address}")

    async def ask(self, prompt: Sequence[int], output_tokens: int, deadline: float) -> AsyncGenerator[Piece]:
        """See `Answers`."""
        request = WorkRequest(
            request_id=uuid.uuid4().hex, token_ids=tuple(prompt), sampling=_greedy(output_tokens), deadline=deadline
        )
        async for event in self._client.decode(request):
            done = event.summary
            told = Told(done.stages, done.usage, colocated=True) if done else None
            yield Piece(sum(len(choice.tokens) for choice in event.choices), told)

    async def close(self) -> None:
        """See `Answers`."""
        self._client.close()
        await self._channel.close()


def _greedy(output_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
