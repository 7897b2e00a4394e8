"""Client side of gRPC: channels, deadlines and the translation of failed calls into typed errors."""

import asyncio
import contextlib
import time
from collections.abc import Generator
from typing import Any, TypeVar, cast

import grpc

from services.common.errors import DeadlineExceeded, PeerError, PeerUnreachable
from services.common.rpc.limits import (
    DEFAULT_MESSAGE_BYTES,
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    MAX_METADATA_BYTES,
)
from services.common.rpc.secured_channel import SecuredChannel
from services.common.rpc.security import ClientSecurity, client_security
from services.common.rpc.status import from_rpc_error

T = TypeVar("T")


def open_channel(
    address: str,
    *,
    max_message_bytes: int = DEFAULT_MESSAGE_BYTES,
    security: ClientSecurity | None = None,
    repeats_unseen: bool = False,
) -> grpc.aio.Channel:
    """Opens a channel to host:port, as secure as this process is unless told otherwise; connects lazily, reconnects.

    Keepalive finds a black hole in seconds, also without calls in flight. gRPC repeats no call that its server may have
    seen: whoever calls knows whether it may be repeated. With `repeats_unseen` it repeats those that the server has
    certainly not seen, as happens where a connection reaches its age. The caller owns the channel and must
    `await channel.close()`.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # NOTE: without this one an unanswered ping is only given up after 60 s, whatever the option above says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_retries", int(repeats_unseen)),
        # Peers are addressed directly; a proxy of the environment would be in the way.
        ("grpc.enable_http_proxy", 0),
        # A connection of its own: closing one channel never touches, and backoff never spreads to, another.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    security = client_security() if security is None else security
    if security.is_plain:
        return grpc.aio.insecure_channel(address, options=options)
    return SecuredChannel(address, security, options)


@contextlib.contextmanager
def rpc_errors(peer: str) -> Generator[None]:
    """Raises failed calls as typed errors; `peer` names the other side in messages.

    Cancellation of the calling task passes through untouched. A channel closed under a running call also surfaces as
    CancelledError although nobody cancelled the task; that alone becomes PeerUnreachable.

    Raises:
        BatonError: what the peer answered, or why it could not be asked.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from error
    except grpc.aio.UsageError as error:
        raise PeerUnreachable(f"the channel to {peer} is closed; a new call needs a new channel") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise PeerUnreachable(f"the channel to {peer} was closed during a call") from error


def answered(answer: T | None, peer: str) -> T:
    """What a peer answered; gRPC gives None for bytes that are no message of the method, and logs why.

    Raises:
        PeerError: it answered with such bytes.
    """
    if answer is None:
        raise PeerError(f"{peer} answered with what is no message; it is broken, or its version is another one")
    return answer


def timeout_left(deadline: float, margin_s: float = 0.0) -> float:
    """Seconds until `deadline` (monotonic clock) minus a margin for the way back.

    Raises:
        DeadlineExceeded: nothing is left.
    """
    left = deadline - time.monotonic() - margin_s
    if left <= 0:
        raise DeadlineExceeded("the request's time is up; allow more time or ask for fewer tokens")
    return left


def deadline_of(context: "grpc.aio.ServicerContext[Any, Any]", default_s: float) -> float:
    """The monotonic deadline of a call that this process serves; calls without one get `default_s` seconds."""
    # The stubs leave out that a call without a deadline answers None.
    remaining = cast(float | None, context.time_remaining())
    return time.monotonic() + (default_s if remaining is None else remaining)
