"""Workers without a model: real servers that answer as a test says, and note what is asked of them.

A worker emits the token ids of its script. Gates hold it at a point until the test opens them, so no test needs to
sleep; what a client withdrew is seen through events.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from baton.v1 import decode_pb2, decode_pb2_grpc, kv_transfer_pb2, kv_transfer_pb2_grpc, prefill_pb2, prefill_pb2_grpc

from services.common.block_journal import BlockJournal
from services.common.changes import Changes
from services.common.convert import choice_to_proto, stages_to_proto, usage_to_proto
from services.common.rpc.server import Binding, RpcServer
from services.common.types import (
    ChoiceTokens,
    DecodeSummary,
    FinishReason,
    KvLayout,
    Load,
    StageTimes,
    Tier,
    Token,
    Usage,
    WorkerInfo,
)
from services.common.worker_service import WorkerServicer

PREFILL_STAGES = StageTimes(queue_ns=1_000, prefill_ns=2_000)
DECODE_STAGES = StageTimes(handoff_ns=3_000, admission_ns=4_000, decode_ns=5_000)
TIMEOUT_S = 30.0

Context = grpc.aio.ServicerContext[Any, Any]


async def within(awaitable: Any, timeout_s: float = TIMEOUT_S) -> Any:
    """Waits for something that must happen soon."""
    async with asyncio.timeout(timeout_s):
        return await awaitable


async def eventually(is_true: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Waits for a condition that nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110 - nothing sets an event for it
            await asyncio.sleep(0.002)


class Script:
    """What a worker does with each request; shared by a prefill and a decode worker that play one pair.

    `tokens[choice]` are the ids to emit, the last one with `finish`. `error` is raised by prefill before its answer,
    `decode_error` by decode after `decode_error_at` tokens. The gate `steps` holds tokens from index `hold_at` on.
    `num_logprobs` makes messages large.
    """

    def __init__(self, *tokens: list[int], finish: FinishReason | None = FinishReason.STOP) -> None:
        self.tokens = tokens
        self.finish = finish
        self.error: Exception | None = None
        self.decode_error: Exception | None = None
        self.decode_error_at = 0
        self.first_token = _open_gate()
        self.handoff = _open_gate()
        self.steps = _open_gate()
        self.hold_at = 1
        self.num_logprobs = 0
        self.end = _open_gate()

    def part(self, choice: int, start: int, end: int, max_tokens: int) -> ChoiceTokens:
        """Tokens [start, end) of one choice, with the finish reason where they are the last."""
        ids = self.tokens[choice][:max_tokens]
        tops = tuple((token_id, -1.0) for token_id in range(self.num_logprobs))
        tokens = tuple(Token(token_id, start + place, None, tops) for place, token_id in enumerate(ids[start:end]))
        finish = None
        if end >= len(ids):
            finish = FinishReason.LENGTH if len(self.tokens[choice]) > max_tokens else self.finish
        return ChoiceTokens(choice, tokens, finish)


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class ScriptedWorker(
    prefill_pb2_grpc.PrefillServiceServicer,
    decode_pb2_grpc.DecodeServiceServicer,
    kv_transfer_pb2_grpc.KvTransferServiceServicer,
):
    """One worker process of a tier, on a real port."""

    def __init__(self, tier: Tier, script: Script, *, worker_id: str = "", model: str = "text") -> None:
        self.script = script
        self.incarnation = secrets.token_hex(4)
        self.worker_id = worker_id or f"{tier.value}-0"
        self.tier = tier
        self.model = model
        self.address = ""
        self.layout = KvLayout(
            model_fingerprint="scripted", dtype="float32", num_layers=1, num_kv_heads=1, head_dim=2, block_size=4
        )
        self.max_model_len = 64
        self.reported = Load(free_blocks=64, total_blocks=64)
        self.blocks = BlockJournal()
        self.requests: list[Any] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.released: list[str] = []
        self.was_released = asyncio.Event()
        self.decoded_tokens = 0
        self.remaining_s: list[float] = []
        self.asked_at: list[float] = []
        self._changes = Changes()
        self._state = WorkerServicer(self, self._changes)
        self._server = RpcServer("127.0.0.1", 0, self._bindings())

    async def start(self) -> None:
        """Listens on a free port."""
        self.address = f"127.0.0.1:{await self._server.start()}"

    async def restart(self) -> None:
        """Dies and starts again at the same address, as another incarnation that remembers nothing."""
        await self.stop()
        self.incarnation = secrets.token_hex(4)
        self.requests.clear()
        self._changes = Changes()
        self._state = WorkerServicer(self, self._changes)
        self._server = RpcServer("127.0.0.1", int(self.address.rpartition(":")[2]), self._bindings())
        await self.start()

    async def stop(self) -> None:
        """Dies: every call is cut."""
        self._state.close()
        await self._server.stop(0)

    def fall_silent(self) -> None:
        """Reports no more; calls that run stay as they are."""
        self._state.close()

    def info(self) -> WorkerInfo:
        """As WorkerState."""
        return WorkerInfo(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            tier=self.tier,
            address=self.address,
            model=self.model,
            layout=self.layout,
            max_model_len=self.max_model_len,
            version="test",
            total_blocks=64,
            max_num_seqs=8,
        )

    def load(self) -> Load:
        """As WorkerState."""
        return self.reported

    async def drain(self, deadline: float, move_after_s: float | None = None) -> int:
        """As WorkerState."""
        self.report(Load(free_blocks=64, total_blocks=64, draining=True))
        return 0

    def report(self, load: Load) -> None:
        """Reports another load from now on."""
        self.reported = load
        self._changes.notify()

    async def Prefill(self, request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        with self._noted(request, context):
            await self.script.first_token.wait()
            if self.script.error is not None:
                raise self.script.error
            return prefill_pb2.PrefillResponse(
                first_tokens=[choice_to_proto(part) for part in self._parts(request, 0, 1)],
                usage=usage_to_proto(Usage(len(request.token_ids), request.sampling.n, 1)),
                stages=stages_to_proto(PREFILL_STAGES),
                worker_id=self.worker_id,
            )

    async def Decode(self, request: Any, context: Context) -> AsyncIterator[decode_pb2.DecodeResponse]:
        with self._noted(request, context):
            await self.script.handoff.wait()
            for index in range(max(map(len, self.script.tokens))):
                if self.script.decode_error is not None and index == self.script.decode_error_at:
                    raise self.script.decode_error
                if index >= self.script.hold_at:
                    await self.script.steps.wait()
                choices = [choice_to_proto(part) for part in self._parts(request, index, index + 1)]
                if choices:
                    self.decoded_tokens = index + 1
                    yield decode_pb2.DecodeResponse(choices=choices)
            await self.script.end.wait()
            yield decode_pb2.DecodeResponse(summary=self._summary(request))

    async def WatchTokens(self, request: Any, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "tokens come over their requests' own calls")

    async def Release(self, request: Any, context: Context) -> kv_transfer_pb2.ReleaseResponse:
        self.released.append(request.ticket_id)
        self.was_released.set()
        return kv_transfer_pb2.ReleaseResponse(was_open=True)

    def _bindings(self) -> list[Binding]:
        return [
            self._state.binding(),
            Binding("baton.v1.PrefillService", self, prefill_pb2_grpc.add_PrefillServiceServicer_to_server),
            Binding("baton.v1.DecodeService", self, decode_pb2_grpc.add_DecodeServiceServicer_to_server),
            Binding("baton.v1.KvTransferService", self, kv_transfer_pb2_grpc.add_KvTransferServiceServicer_to_server),
        ]

    @contextlib.contextmanager
    def _noted(self, request: Any, context: Context):
        self.requests.append(request)
        self.remaining_s.append(context.time_remaining())
        self.asked_at.append(time.monotonic())
        self.asked.set()
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):  # the latter where it was cancelled while writing
            self.cancelled.set()
            raise

    def _parts(self, request: Any, start: int, end: int) -> list[ChoiceTokens]:
        parts = (
            self.script.part(choice, start, end, request.sampling.max_tokens) for choice in range(request.sampling.n)
        )
        return [part for part in parts if part.tokens]

    def _summary(self, request: Any) -> decode_pb2.DecodeSummary:
        summary = DecodeSummary(
            usage=Usage(len(request.token_ids), 0, 0),
            stages=DECODE_STAGES,
            prefilled_tokens=0,
            preemptions=0,
            received_bytes=0,
            worker_id=self.worker_id,
        )
        return decode_pb2.DecodeSummary(
            usage=usage_to_proto(summary.usage), stages=stages_to_proto(summary.stages), worker_id=summary.worker_id
        )
