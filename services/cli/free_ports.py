"""Finds TCP ports that nobody listens on."""

import random
import socket

# Below Linux's range for outgoing connections, so that none of these takes a port between its choice and its use.
_FIRST_PORT = 15_000
_LAST_PORT = 32_000
_MAX_TRIES = 10_000


def is_free(host: str, port: int) -> bool:
    """True where a server could listen on host:port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((host.strip("[]"), port))
            probe.listen(1)  # with SO_REUSEADDR only a listener keeps others away
        except OSError:
            return False
    return True


class FreePorts:
    """Hands out ports of one host, each once."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._taken: set[int] = set()

    def take(self, preferred: int = 0) -> int:
        """The preferred port where it is free, else a random free one; 0 prefers none.

        Raises:
            OSError: far too many ports are taken.
        """
        candidates = [preferred] if preferred else []
        candidates += [random.randint(_FIRST_PORT, _LAST_PORT) for _ in range(_MAX_TRIES)]
        for port in candidates:
            if port not in self._taken and is_free(self._host, port):
                self._taken.add(port)
                return port
        raise OSError(f"no free port between {_FIRST_PORT} and {_LAST_PORT} on {self._host}")
