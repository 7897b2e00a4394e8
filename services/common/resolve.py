"""Names to addresses, with a deadline, without blocking the event loop."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from services.common.errors import PeerUnreachable
from services.common.ports import join_address, split_address

RESOLVE_TIMEOUT_S = 5.0

# host:port in, every address behind it out, as ip:port; raises PeerUnreachable.
Resolve = Callable[[str], Awaitable[tuple[str, ...]]]


async def resolve(address: str) -> tuple[str, ...]:
    """Every IPv4 and IPv6 address behind host:port, each as ip:port, in a stable order.

    Raises:
        PeerUnreachable: the name does not resolve now, or not in time.
    """
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise PeerUnreachable(f"{host} does not resolve: {error or 'no answer in time'}; check the name") from error
    return tuple(sorted({join_address(str(where[0]), port) for *_, where in found}))
