"""A link: proxies that are hurt alike, and what can be done to them."""

import time
from collections.abc import Callable

from tests.harness.tcp_proxy import TcpProxy

# The two sides of a new channel have met by then, or given up.
MEETING_S = 30.0

Hurt = Callable[[TcpProxy], None]


def slowed(lane: str, **values: float) -> Hurt:
    """Both directions of a link, or one, as said."""

    def hurt(proxy: TcpProxy) -> None:
        for name in ("up", "down") if lane == "both" else (lane,):
            for key, value in values.items():
                setattr(getattr(proxy, name), key, value)

    return hurt


def cut(proxy: TcpProxy) -> None:
    """Resets the link in the middle of what it carries next."""
    proxy.down.cut_after = proxy.up.cut_after = 3_000


BROKEN: dict[str, Hurt] = {
    "refuse": TcpProxy.refuse,
    "reset": TcpProxy.reset,
    "cut": cut,
    "black hole": TcpProxy.black_hole,
    "black hole of one direction": lambda proxy: proxy.down.is_open.clear(),
    "black hole of the other direction": lambda proxy: proxy.up.is_open.clear(),
    "half open": TcpProxy.half_open,
}
SLOW: dict[str, Hurt] = {
    "delay of 200 ms": slowed("both", delay_s=0.1),
    "stall of 10 % of the chunks": slowed("both", stall_share=0.1, stall_s=0.5),
    "bandwidth cap": slowed("both", bytes_per_s=200e3),
}


class Link:
    """Proxies that are hurt alike, those of later connections included."""

    def __init__(self) -> None:
        self._proxies: list[tuple[float, TcpProxy]] = []  # with the moment from which each has listened
        self._hurt: Hurt | None = None

    async def proxy(self, port: int, host: str = "127.0.0.1", at: tuple[str, int] | None = None) -> TcpProxy:
        """A proxy in front of a port; it listens at a host and port, or at any port of the target's host."""
        listen_host, listen_port = at or (host, 0)
        proxy = TcpProxy(port, listen_host, host, seed=len(self._proxies))
        await proxy.start(listen_port)
        if self._hurt is not None:
            self._hurt(proxy)
        self._proxies.append((time.monotonic(), proxy))
        return proxy

    async def forget_unused(self) -> None:
        """Ends proxies that carry nothing and are too old for anybody to come."""
        latest = time.monotonic() - MEETING_S
        unused = [one for one in self._proxies if one[0] < latest and not one[1].is_used]
        self._proxies = [one for one in self._proxies if one not in unused]
        for _, proxy in unused:
            await proxy.close()

    def hurt(self, how: Hurt) -> None:
        """From now on, until `heal`."""
        self._hurt = how
        for _, proxy in self._proxies:
            how(proxy)

    async def heal(self) -> None:
        """As good links again."""
        self._hurt = None
        for _, proxy in self._proxies:
            await proxy.heal()

    @property
    def passed_bytes(self) -> int:
        """Bytes that went on, both directions together."""
        return sum(proxy.up.passed_bytes + proxy.down.passed_bytes for _, proxy in self._proxies)

    async def close(self) -> None:
        """Ends the proxies."""
        for _, proxy in self._proxies:
            await proxy.close()
        self._proxies.clear()
