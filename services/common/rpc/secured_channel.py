"""A channel that shows its token with every call, and takes new certificates when their files change.

gRPC fixes a channel's certificates when it is made. So this one makes another for the calls that begin after a change,
and leaves the calls that run on the one that they began on.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from services.common.rpc.security import ClientSecurity
from services.common.rpc.tls import TlsMaterial, channel_credentials
from services.common.rpc.tokens import bearer

# Earlier channels that may still carry calls; more changes than this within the life of a call end it.
MAX_EARLIER = 3

Options = list[tuple[str, int | str]]


class SecuredChannel(grpc.aio.Channel):
    """A channel to host:port as `security` says; otherwise like any other. Loop-owned."""

    def __init__(self, address: str, security: ClientSecurity, options: Options) -> None:
        self._address = address
        self._security = security
        named = [("grpc.ssl_target_name_override", security.server_name)] if security.server_name else []
        self._options: Options = [*options, *named]
        self._material = self._found()
        self._current = self._open()
        self._earlier: list[grpc.aio.Channel] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def current(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        found = self._found()
        if found is not self._material and not self._is_closed:
            self._material = found
            self._earlier.append(self._current)
            self._current = self._open()
            if len(self._earlier) > MAX_EARLIER:
                closing = asyncio.ensure_future(self._earlier.pop(0).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        return self._current

    def metadata(self, given: Any) -> Any:
        """The metadata of a call, with the token."""
        if self._security.tokens is None:
            return given
        return (*(given or ()), bearer(self._security.tokens.current()[0]))

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in gRPC."""
        return _Method(self, lambda channel: channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in gRPC."""
        return _Method(self, lambda channel: channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in gRPC."""
        return _Method(self, lambda channel: channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in gRPC."""
        return _Method(self, lambda channel: channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        """Ends every call, also those on earlier channels; idempotent."""
        self._is_closed = True
        channels = [*self._earlier, self._current]
        self._earlier.clear()
        await asyncio.gather(*(channel.close(grace) for channel in channels), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the connection for new calls."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until that state is another one."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until it is connected."""
        await self.current().channel_ready()

    async def __aenter__(self) -> "SecuredChannel":
        """Gives the channel itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes it."""
        await self.close()

    def _found(self) -> TlsMaterial | None:
        return None if self._security.tls is None else self._security.tls.current()

    def _open(self) -> grpc.aio.Channel:
        if self._material is None:
            return grpc.aio.insecure_channel(self._address, options=self._options)
        return grpc.aio.secure_channel(self._address, channel_credentials(self._material), options=self._options)


class _Method:
    """One method: what a stub calls."""

    def __init__(self, channel: SecuredChannel, bind: Callable[[grpc.aio.Channel], Any]) -> None:
        self._channel = channel
        self._bind = bind
        self._bound_to: grpc.aio.Channel | None = None
        self._bound: Any = None

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        channel = self._channel.current()
        if channel is not self._bound_to:
            self._bound, self._bound_to = self._bind(channel), channel
        return self._bound(*args, metadata=self._channel.metadata(metadata), **kwargs)
