"""A worker that takes part as a good one does and gives hostile answers: a good answer with some of it changed.

What it answers to call number i is drawn from its seed and i alone.
"""

import asyncio
import enum
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
from baton.v1 import decode_pb2, kv_transfer_pb2, prefill_pb2, types_pb2, worker_pb2, worker_pb2_grpc
from google.rpc import status_pb2

from services.common.convert import load_to_proto, worker_to_proto
from services.common.types import Tier
from services.common.worker_service import WorkerServicer
from tests.harness.fuzz.messages import MessageFuzzer
from tests.harness.fuzz.values import Harvest
from tests.harness.scripted_workers import Script, ScriptedWorker

Context = grpc.aio.ServicerContext[Any, Any]

_PREFILL = prefill_pb2.PrefillRequest.FromString
_WATCH = decode_pb2.WatchTokensRequest.FromString
_DECODE = decode_pb2.DecodeRequest.FromString
_DETAILS = "grpc-status-details-bin"


class Manner(enum.Enum):
    """What is wrong with an answer."""

    GOOD = "nothing"
    CHANGED = "some of one message"
    MADE_UP = "a message that is nothing but hostile values comes before one"
    CUT = "it ends early, and well"
    TORN = "it ends early with a status"
    REPEATED = "a message comes twice, or for ever"
    MIXED = "the order of its messages"


_MANNERS = [Manner.GOOD, *[Manner.CHANGED] * 4, *(each for each in Manner if each is not Manner.GOOD)]


def answer_to(request: Any, tokens: list[int]) -> list[Any]:
    """A good answer: what a worker would say whose model gives these tokens."""
    count = min(len(tokens), request.sampling.max_tokens)
    parts = [types_pb2.ChoiceTokens(tokens=[types_pb2.Token(id=tokens[i], index=i)]) for i in range(count)]
    parts[-1].finish_reason = types_pb2.FINISH_REASON_LENGTH
    usage = types_pb2.Usage(prompt_tokens=len(request.token_ids), completion_tokens=count)
    if isinstance(request, prefill_pb2.PrefillRequest):
        return [prefill_pb2.PrefillResponse(first_tokens=parts[:1], usage=usage, worker_id="prefill-0")]
    summary = decode_pb2.DecodeSummary(usage=usage, worker_id="decode-0")
    return [*(decode_pb2.DecodeResponse(choices=[part]) for part in parts), decode_pb2.DecodeResponse(summary=summary)]


class RogueWorker:
    """On a port of its own; `calls` counts answers by what was wrong with them.

    Where it `lies`, what it says of itself is hostile, too.
    """

    def __init__(self, tier: Tier, tokens: list[int], seed: int, *, lies: bool = False) -> None:
        self.tier = tier
        self.address = ""
        self.calls: dict[Manner, int] = dict.fromkeys(Manner, 0)
        self._tokens = tokens
        self._seed = seed
        self.lies = lies
        self._numbers = itertools.count()
        self._watches: dict[str, asyncio.Queue[bytes]] = {}
        self._good = ScriptedWorker(tier, Script(tokens), worker_id=f"{tier.value}-{'liar' if lies else 0}")
        self._state = WorkerServicer(self._good, self._good._changes)
        self._server = grpc.aio.server()

    async def start(self) -> None:
        """Listens."""
        self._good.address = self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._serve("PrefillService", Prefill=grpc.unary_unary_rpc_method_handler(self._prefill, _PREFILL))
        self._serve(
            "DecodeService",
            Decode=grpc.unary_stream_rpc_method_handler(self._decode, _DECODE),
            WatchTokens=grpc.unary_stream_rpc_method_handler(self._watch_tokens, _WATCH),
        )
        self._serve("KvTransferService", Release=grpc.unary_unary_rpc_method_handler(self._release))
        if self.lies:
            describe = grpc.unary_unary_rpc_method_handler(self._describe)
            self._serve("WorkerService", Describe=describe, WatchLoad=grpc.unary_stream_rpc_method_handler(self._watch))
        else:
            worker_pb2_grpc.add_WorkerServiceServicer_to_server(self._state, self._server)
        await self._server.start()

    async def stop(self) -> None:
        """Ends every call."""
        self._state.close()
        await self._server.stop(0)

    def _serve(self, service: str, **handlers: Any) -> None:
        handler = grpc.method_handlers_generic_handler(f"baton.v1.{service}", handlers)
        self._server.add_generic_rpc_handlers((handler,))

    async def _prefill(self, request: Any, context: Context) -> bytes:
        async for data in self._answer(request, context):
            return data
        return b""

    async def _release(self, request: bytes, context: Context) -> bytes:
        return self._changed(kv_transfer_pb2.ReleaseResponse(was_open=True))

    async def _describe(self, request: bytes, context: Context) -> bytes:
        info, load = worker_to_proto(self._good.info()), load_to_proto(self._good.load())
        return self._changed(worker_pb2.DescribeResponse(worker=info, load=load))

    async def _watch(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        while True:
            load = load_to_proto(self._good.load())
            yield self._changed(worker_pb2.WatchLoadResponse(incarnation=self._good.incarnation, load=load))
            await asyncio.sleep(0.01)

    async def _watch_tokens(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        queue = self._watches[request.watch_id] = asyncio.Queue[bytes]()
        yield b""
        while True:
            yield await queue.get()

    async def _decode(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        """Some answers come over the watch, where it may be either way that is hurt."""
        rng = self._random()
        watch = self._watches.get(request.watch_id)
        if watch is None or rng.random() < 0.5:
            async for data in self._answer(request, context):
                yield data
            return
        manner = rng.choice(_MANNERS)
        self.calls[manner] += 1
        *tokens, last = answer_to(request, self._tokens)
        last.watched_tokens = len(tokens)
        ways: list[list[Any]] = [
            [
                decode_pb2.WatchTokensResponse(
                    requests=[decode_pb2.WatchedTokens(watch_key=request.watch_key, choices=part.choices)]
                )
                for part in tokens
            ],
            [last],
        ]
        hurt = rng.randrange(2)
        watched, called = (
            _hurt(rng, manner if way == hurt else Manner.GOOD, messages, rng.randrange(len(messages)))
            for way, messages in enumerate(ways)
        )
        for data in watched:
            watch.put_nowait(data)
        for data in called:
            yield data

    def _changed(self, message: Any) -> bytes:
        fuzzer = MessageFuzzer(self._random(), Harvest())
        for _ in range(fuzzer._rng.choice((0, 1, 1, 4))):
            fuzzer.mutate(message)
        return fuzzer.bytes_of(message)

    def _random(self) -> random.Random:
        return random.Random(f"{self._seed}/{next(self._numbers)}")

    async def _answer(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        rng = self._random()
        manner = rng.choice(_MANNERS)
        self.calls[manner] += 1
        messages = answer_to(request, self._tokens)
        place = rng.randrange(len(messages))
        for data in _hurt(rng, manner, messages, place):
            yield data
        if manner is Manner.REPEATED and rng.random() < 0.5:
            while True:
                await asyncio.sleep(0.005)
                yield messages[place].SerializeToString()
        if manner is Manner.TORN:
            await _tear(rng, context)


def _hurt(rng: random.Random, manner: Manner, messages: list[Any], place: int) -> list[bytes]:
    fuzzer = MessageFuzzer(rng, Harvest())
    data = [message.SerializeToString() for message in messages]
    match manner:
        case Manner.CHANGED:
            for _ in range(rng.choice((1, 1, 2, 4))):
                fuzzer.mutate(messages[place])
            data[place] = fuzzer.bytes_of(messages[place])
        case Manner.MADE_UP:
            made_up = type(messages[place])()
            fuzzer.fill(made_up)
            data.insert(place, fuzzer.bytes_of(made_up))
        case Manner.CUT | Manner.TORN:
            del data[place:]
        case Manner.REPEATED:
            data.insert(place, data[place])
        case Manner.MIXED:
            rng.shuffle(data)
        case Manner.GOOD:
            pass
    return data


async def _tear(rng: random.Random, context: Context) -> None:
    """Ends the call with a status of any kind, and with details that may not fit it."""
    code = rng.choice([each for each in grpc.StatusCode if each is not grpc.StatusCode.OK])
    status = status_pb2.Status(code=code.value[0], message="x")
    fuzzer = MessageFuzzer(rng, Harvest())
    for _ in range(rng.choice((0, 1, 3))):
        fuzzer.mutate(status)
    await context.abort(code, "torn", ((_DETAILS, fuzzer.bytes_of(status)[:4000]),))
