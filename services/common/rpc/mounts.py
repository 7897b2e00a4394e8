"""The services of a listening server, which may be replaced while it listens.

gRPC asks for the handler of every single call, so a service that is mounted under a known name serves the calls that
come from then on; calls that run stay with the servicer that has them.
"""

from collections.abc import Callable
from typing import Any

import grpc


class Mounts:
    """Finds the handler of a call. Towards generated code it acts as a server, towards the server as a handler."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Full names of the services."""
        return sorted(self._handlers)

    def add(self, add_to_server: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        """Mounts a service through its generated function; takes the place of one of the same name."""
        server: Any = self
        add_to_server(servicer, server)

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """What generated code calls on a server."""
        self._handlers |= {handler.service_name(): handler for handler in handlers}

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """What newer generated code calls besides; the generic handlers serve these methods already."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; None where there is none."""
        handler = self._handlers.get(handler_call_details.method.strip("/").partition("/")[0])
        return None if handler is None else handler.service(handler_call_details)
