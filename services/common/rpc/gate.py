"""Who may call, how often, and how many calls at once: decided before a servicer sees a call.

Health is open to everybody and always, because probes have neither token nor patience, and a process that is busy must
not look dead. Everything else, reflection included, wants a token where the server has tokens.
"""

import time
from typing import Any

import grpc

from services.common.errors import BatonError, QueueFull, RateLimited, Unauthenticated
from services.common.rate_limit import RateLimit
from services.common.rpc.health_list import SERVICE as HEALTH
from services.common.rpc.tokens import Metadata, Tokens, is_known, name_of, shown_token

RETRY_WHEN_BUSY_S = 1.0

_OPEN = f"/{HEALTH}/"


class Gate:
    """Admits calls. Loop-owned."""

    def __init__(self, tokens: Tokens | None, rate: RateLimit | None, max_concurrent_rpcs: int) -> None:
        self._tokens = tokens
        self._rate = rate
        self._max_concurrent_rpcs = max_concurrent_rpcs

    def refusal(self, method: str, metadata: Metadata | None, in_flight: int) -> BatonError | None:
        """Why a call is refused although nothing of its request was read; None where it may go on."""
        if method.startswith(_OPEN):
            return None
        if self._tokens is not None:
            token = shown_token(metadata)
            if token is None or not is_known(token, self._tokens.current()):
                shown = "no bearer token" if token is None else "a token that is not known here"
                return Unauthenticated(f"the call shows {shown}; send metadata authorization: Bearer <token>")
        if in_flight >= self._max_concurrent_rpcs:
            message = f"{in_flight} calls run already, the most that this process serves; try again later"
            return QueueFull(message, retry_after_s=RETRY_WHEN_BUSY_S)
        return None

    def count(self, method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        """Counts a call against its caller's rate.

        Raises:
            RateLimited: the caller has used up its rate; says when to come back.
        """
        if self._rate is None or method.startswith(_OPEN):
            return
        wait_s = self._rate.take(self._caller(context), time.monotonic())
        if wait_s > 0:
            message = f"more than {self._rate.per_s:g} requests a second came from you; slow down"
            raise RateLimited(message, retry_after_s=wait_s)

    def _caller(self, context: "grpc.aio.ServicerContext[Any, Any]") -> str:
        """Who calls: the bearer of a token, else the machine that it comes from."""
        token = None if self._tokens is None else shown_token(context.invocation_metadata())
        return context.peer().rpartition(":")[0] if token is None else name_of(token)
