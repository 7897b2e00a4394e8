"""GenerationService: translates calls for the answers, the pipeline behind them, and the tokenizer."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from baton.v1 import generation_pb2 as pb
from baton.v1 import generation_pb2_grpc as rpc

from services.common.errors import InvalidRequest, SlowReader
from services.common.rpc.channel import deadline_of
from services.common.rpc.interceptor import Context
from services.common.rpc.server import Binding
from services.common.rpc.stages import set_stage_metadata
from services.frontend.answers import Answers
from services.frontend.convert import model_to_proto, output_to_proto, request_from_proto, tokenize_prompt
from services.frontend.request import Output, ServedModel
from services.frontend.stage_record import StageRecord
from services.frontend.tokenizer import Tokenizer
from services.frontend.validate import PromptLimits, model_violations, prompt_violations, token_violations

FULL_NAME = "baton.v1.GenerationService"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimes:
    """Seconds that a call gets whose client set no deadline, that any gets, and that a stream may be left unread."""

    default_deadline_s: float
    max_deadline_s: float
    slow_reader_s: float


class GenerationServicer(rpc.GenerationServiceServicer):
    """Serves one model. A call's deadline is its client's, a default where that set none, and is capped."""

    def __init__(
        self,
        answers: Answers,
        tokenizer: Tokenizer,
        served: Callable[[], ServedModel],
        limits: PromptLimits,
        times: CallTimes,
    ) -> None:
        self._answers = answers
        self._tokenizer = tokenizer
        self._served = served
        self._limits = limits
        self._times = times

    def binding(self) -> Binding:
        """How to mount it."""
        return Binding(FULL_NAME, self, rpc.add_GenerationServiceServicer_to_server)

    # gRPC also takes a coroutine that writes; it is what lets a cancelled write end the pipeline in the same task.
    async def Generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        """Streams the tokens of one prompt."""
        record = StageRecord()
        times = self._times
        deadline = min(deadline_of(context, times.default_deadline_s), time.monotonic() + times.max_deadline_s)
        asked = request_from_proto(request, secrets.token_hex(8), deadline)

        async def send(output: Output) -> None:
            await self._write(context, output_to_proto(output))

        try:
            with structlog.contextvars.bound_contextvars(request_id=asked.request_id):
                await self._answers.generate(asked, send, record)
        finally:
            set_stage_metadata(context, record.stages())

    async def Resume(  # pyright: ignore[reportIncompatibleMethodOverride] - as Generate
        self, request: pb.ResumeRequest, context: Context
    ) -> None:
        """Goes on with the answer to a resumable request."""

        async def send(output: Output) -> None:
            await self._write(context, pb.ResumeResponse(piece=output_to_proto(output)))

        await self._answers.resume(request.resume_token, request.received, send)

    async def _write(self, context: Context, message: pb.GenerateResponse | pb.ResumeResponse) -> None:
        """Hands a message to gRPC, which takes it once the client has read enough of what came before.

        Raises:
            SlowReader: the client does not read; whatever runs for it must end.
        """
        try:
            async with asyncio.timeout(self._times.slow_reader_s):
                await context.write(message)
        except TimeoutError:
            text = f"the stream was not read for {self._times.slow_reader_s:g} s; read it faster, or ask for less"
            raise SlowReader(text) from None

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Stops a resumable request."""
        return pb.CancelResponse(was_running=self._answers.cancel(request.resume_token))

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Turns text or chat messages into token ids."""
        prompt = tokenize_prompt(request)
        violations = [*model_violations(request.model, self._limits), *prompt_violations(prompt, self._limits)]
        if violations or prompt is None:
            raise InvalidRequest(violations)
        return pb.TokenizeResponse(token_ids=await self._tokenizer.encode(prompt))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """Turns token ids into text."""
        violations = [
            *model_violations(request.model, self._limits),
            *token_violations("token_ids", request.token_ids, self._limits.vocab_size),
        ]
        if violations:
            raise InvalidRequest(violations)
        return pb.DetokenizeResponse(text=await self._tokenizer.decode(request.token_ids))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists the models that are served now."""
        return pb.ListModelsResponse(models=[model_to_proto(self._served())])
