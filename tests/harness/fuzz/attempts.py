"""One hostile call: how it is made, and what came of it."""

import asyncio
import enum
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tests.harness.fuzz.methods import Method
from tests.harness.fuzz.values import Harvest

# A call that has not ended so long after its deadline hangs; the machine may be loaded.
GRACE_S = 20.0
MAX_ANSWERS = 300

# What the client library says where a stream of requests ends before it has written them all.
_OF_THE_CLIENT = "Internal error from Core"

Metadata = tuple[tuple[str, str | bytes], ...]

# What a client may be told. Anything else, INTERNAL and UNKNOWN above all, is a fault of the server.
EXPECTED = frozenset(
    "OK CANCELLED INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND RESOURCE_EXHAUSTED FAILED_PRECONDITION UNAVAILABLE "
    "UNIMPLEMENTED PERMISSION_DENIED UNAUTHENTICATED".split()
)


class Manner(enum.Enum):
    """How the client behaves."""

    READ = "reads to the end"
    CANCEL = "cancels after a moment"
    LEAVE = "cancels after the first answer"
    STALL = "reads one answer and then nothing for a while"
    SILENT = "sends no message"
    TWICE = "sends two messages"
    LOST = "calls a method that does not exist"


_MANNERS = [*[Manner.READ] * 12, *[Manner.CANCEL] * 3, Manner.LEAVE, Manner.LEAVE, Manner.STALL]
_RARE = [Manner.SILENT, Manner.TWICE, Manner.LOST]
_TIMEOUTS_S = (0.002, 0.02, 0.02, 0.05, 0.05, 0.1, 0.3)
_METADATA: tuple[Metadata, ...] = (
    (("traceparent", "00-zz-zz-01"),),
    (("traceparent", "00-" + "f" * 32 + "-" + "0" * 16 + "-ff"), ("tracestate", "=,=,,")),
    (("grpc-status-details-bin", b"\xff\xfe"),),
    (("baton-x", "y" * 4_000),),
    (("authorization", "Bearer "),),
    (("authorization", "Basic ~~~"), ("authorization", "Bearer ~")),
    tuple((f"k{number}", "v") for number in range(100)),
)


@dataclass(frozen=True)
class Attempt:
    """One call."""

    method: Method
    data: bytes
    manner: Manner
    timeout_s: float
    metadata: Metadata = ()
    after_s: float = 0.0

    def __str__(self) -> str:
        shown = self.data if len(self.data) <= 600 else self.data[:600] + b"..."
        return f"{self.method.path} ({self.manner.value}, {self.timeout_s} s, {self.metadata}) {shown.hex()}"


@dataclass(frozen=True)
class Outcome:
    """The status that ended a call, HANG where none came."""

    code: str
    details: str = ""

    @property
    def is_expected(self) -> bool:
        """False where the server did what no client may provoke."""
        return self.code in EXPECTED


def draw_attempt(rng: random.Random, method: Method, data: bytes) -> Attempt:
    """A way to make the call."""
    return Attempt(
        method,
        data,
        rng.choice(_RARE if rng.random() < 0.04 else _MANNERS),
        rng.choice(_TIMEOUTS_S),
        rng.choice(_METADATA) if rng.random() < 0.04 else (),
        rng.choice((0.0, 0.001, 0.005, 0.02)),
    )


async def perform(channel: grpc.aio.Channel, attempt: Attempt, harvest: Harvest) -> Outcome:
    """Makes the call and reads what the attempt reads of it."""
    path = attempt.method.path + ("X" if attempt.manner is Manner.LOST else "")
    messages = {Manner.SILENT: 0, Manner.TWICE: 2}.get(attempt.manner, 1)
    options = {"timeout": attempt.timeout_s, "metadata": attempt.metadata}
    call: Any
    if messages == 1:
        call = channel.unary_stream(path)(attempt.data, **options)
    else:
        call = channel.stream_stream(path)(_each([attempt.data] * messages), **options)
    try:
        async with asyncio.timeout(attempt.timeout_s + GRACE_S):
            await _read(call, attempt, harvest)
            return Outcome((await call.code()).name, str(await call.details()))
    except grpc.aio.AioRpcError as error:
        is_own = error.details() == _OF_THE_CLIENT
        return Outcome("CANCELLED" if is_own else error.code().name, str(error.details()))
    except TimeoutError:
        return Outcome("HANG")
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return Outcome("CANCELLED")
    finally:
        call.cancel()


async def _each(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def _read(call: Any, attempt: Attempt, harvest: Harvest) -> None:
    if attempt.manner is Manner.CANCEL:
        await asyncio.sleep(attempt.after_s)
        call.cancel()
    for count in range(MAX_ANSWERS):
        data = await call.read()
        if data is grpc.aio.EOF:
            return
        _learn(attempt.method, data, harvest)
        if attempt.manner is Manner.LEAVE:
            break
        if attempt.manner is Manner.STALL and count == 0:
            await asyncio.sleep(0.05)
    call.cancel()


def _learn(method: Method, data: bytes, harvest: Harvest) -> None:
    try:
        harvest.take_from(method.response.FromString(data))
    except DecodeError as error:
        raise AssertionError(f"{method.path} answered with what is no message") from error
