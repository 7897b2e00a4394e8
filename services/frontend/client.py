"""How others call a frontend: the CLI, tests, and Python programs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.errors import BatonError, NotFound, PeerError
from services.common.rpc.channel import answered, open_channel, rpc_errors, timeout_left
from services.common.rpc.status import is_connection_loss
from services.common.rpc.tracing import trace_metadata
from services.frontend.convert import model_from_proto, output_from_proto, request_to_proto, tokenize_request
from services.frontend.request import ChatPrompt, GenerationRequest, Output, ServedModel, TextPrompt

DEFAULT_TIMEOUT_S = 10.0
# How long a client tries to reach a frontend again that has its answer.
RESUME_FOR_S = 30.0

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_WITHDRAW_TIMEOUT_S = 1.0
# Stands for an output that did not come because the connection was lost.
_LOST = Output(request_id="")

_Call: TypeAlias = (
    "grpc.aio.UnaryStreamCall[Any, pb.GenerateResponse] | grpc.aio.UnaryStreamCall[Any, pb.ResumeResponse]"
)


class GenerationClient:
    """Calls one frontend. Owns its channel: `await close()`, or use it as an async context manager."""

    def __init__(self, address: str) -> None:
        self._peer = f"frontend {address}"
        self._channel = open_channel(address, repeats_unseen=True)
        self._stub = rpc.GenerationServiceStub(self._channel)

    async def __aenter__(self) -> "GenerationClient":
        """Gives the client itself; nothing is connected yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the channel."""
        await self.close()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Output, None]:
        """Streams the answer by the request's deadline; the last output has the completion.

        Where the request is resumable and the connection is lost, the stream goes on over a new one, without a gap.

        Raises:
            BatonError: what the frontend answered, or why it could not be asked.
        Cancel: close the generator; all work on the request stops.
        """
        call = self._start(request)
        progress = _Progress(request.deadline, range(request.sampling.n))
        try:
            while (output := await self._next(call, progress)) is not None:
                if output is _LOST:
                    call = self._resume(progress)
                    continue
                progress.add(output)
                yield output
        finally:
            call.cancel()
            if progress.token and not progress.is_over:
                await self._withdraw(progress.token)

    async def tokenize(
        self, prompt: TextPrompt | ChatPrompt, *, model: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> tuple[int, ...]:
        """Token ids of a prompt.

        Raises:
            BatonError: what the frontend answered, or why it could not be asked.
        """
        with rpc_errors(self._peer):
            response = answered(
                await self._stub.Tokenize(tokenize_request(model, prompt), timeout=timeout_s), self._peer
            )
        return tuple(response.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> str:
        """Text of token ids.

        Raises:
            BatonError: what the frontend answered, or why it could not be asked.
        """
        request = pb.DetokenizeRequest(model=model, token_ids=token_ids)
        with rpc_errors(self._peer):
            response = answered(await self._stub.Detokenize(request, timeout=timeout_s), self._peer)
        return response.text

    async def list_models(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> tuple[ServedModel, ...]:
        """The models that are served now.

        Raises:
            BatonError: what the frontend answered, or why it could not be asked.
        """
        with rpc_errors(self._peer):
            response = answered(await self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s), self._peer)
        return tuple(model_from_proto(model) for model in response.models)

    def _start(self, request: GenerationRequest) -> _Call:
        timeout = timeout_left(request.deadline)
        return self._stub.Generate(request_to_proto(request), timeout=timeout, metadata=trace_metadata())

    def _resume(self, progress: "_Progress") -> _Call:
        request = pb.ResumeRequest(resume_token=progress.token, received=progress.received)
        return self._stub.Resume(request, timeout=timeout_left(progress.deadline), metadata=trace_metadata())

    async def _next(self, call: _Call, progress: "_Progress") -> Output | None:
        """The next output; None at the end; `_LOST` where another call must go on, after a pause."""
        try:
            with rpc_errors(self._peer):
                message = answered(await call.read(), self._peer)
        except BatonError as error:
            await progress.pause(error)
            return _LOST
        piece = message.piece if isinstance(message, pb.ResumeResponse) else message
        if isinstance(piece, pb.GenerateResponse):
            output = output_from_proto(piece)
            if any(delta.choice not in progress.choices for delta in output.deltas):
                raise PeerError(f"{self._peer} answered with a choice that was not asked for; nothing of it is sure")
            return output
        progress.is_over = True
        if not progress.is_complete:
            raise PeerError(f"{self._peer} ended its answer without the last message; what came of it may be cut short")
        return None

    async def _withdraw(self, token: str) -> None:
        """Stops a resumable request that is no longer wanted, if the frontend hears of it."""
        with contextlib.suppress(BatonError), rpc_errors(self._peer):
            await self._stub.Cancel(pb.CancelRequest(resume_token=token), timeout=_WITHDRAW_TIMEOUT_S)

    async def close(self) -> None:
        """Ends every call and frees the channel."""
        await self._channel.close()


@dataclass(slots=True)
class _Progress:
    """What has come of an answer, and how long its frontend has been away.

    `deadline` and `choices` are those of the request.
    """

    deadline: float
    choices: range
    token: str = ""
    received: int = 0
    is_over: bool = False
    is_complete: bool = False
    _lost: BatonError | None = None
    _give_up: float = 0.0
    _pause_s: float = 0.0

    def add(self, output: Output) -> None:
        """Takes note of what came."""
        self.token = output.resume_token or self.token
        self.received += not output.resume_token
        self.is_complete |= output.completion is not None
        self._lost = None

    async def pause(self, error: BatonError) -> None:
        """Waits a little after a lost connection, longer each time in a row.

        Raises:
            BatonError: `error`, where nothing can go on; or that of the loss, where the answer is gone by now.
        """
        if self._lost is None:
            self._give_up, self._pause_s = deadline_in(RESUME_FOR_S), _FIRST_PAUSE_S
        is_late = time.monotonic() + self._pause_s >= min(self._give_up, self.deadline)
        if not self.token or not is_connection_loss(error) or is_late:
            self.is_over = True
            raise self._lost if self._lost is not None and isinstance(error, NotFound) else error
        self._lost = self._lost or error
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)


def deadline_in(seconds: float) -> float:
    """A deadline for a request, from now."""
    return time.monotonic() + seconds
