"""Bounds of the gRPC plumbing, and what a server allows its clients."""

from dataclasses import dataclass

DEFAULT_MESSAGE_BYTES = 8 * 2**20
MAX_METADATA_BYTES = 32 * 2**10
MAX_CONCURRENT_RPCS = 4096

# A client pings an idle connection every 5 s and gives it up 3 s after an unanswered ping; the server allows that.
KEEPALIVE_TIME_MS = 5_000
KEEPALIVE_TIMEOUT_MS = 3_000
MIN_PING_INTERVAL_MS = 2_000

# Requests of services that are told little: who is there, which ticket, which key.
SMALL_REQUEST_BYTES = 256 * 2**10

# Calls beyond those that are served: their clients do not send their request, or do not read the end of their answer.
MAX_IDLE_RPCS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server allows. Where it says so, 0 stands for no limit.

    Attributes:
        max_message_bytes: Largest message, sent or received.
        max_concurrent_rpcs: Calls that are served at once, over all connections.
        max_streams: Calls at once on one connection; a client waits with more.
        max_connections: Open connections; more are closed before their handshake. 0: no limit.
        handshake_s: Seconds in which a new connection must have said who it is and that it speaks HTTP/2.
        idle_s: Seconds after which a connection without calls is closed. 0: no limit.
        age_s: Seconds after which a client is asked to connect anew; its calls go on. 0: no limit.
        age_grace_s: Seconds that calls get to end on a connection that has reached its age; then it is closed.
        requests_per_s: Calls a second of one caller in the long run. 0: no limit.
        request_burst: Calls of one caller at once.
    """

    max_message_bytes: int = DEFAULT_MESSAGE_BYTES
    max_concurrent_rpcs: int = MAX_CONCURRENT_RPCS
    max_streams: int = MAX_CONCURRENT_RPCS
    max_connections: int = 0
    handshake_s: float = 10.0
    idle_s: float = 0.0
    age_s: float = 0.0
    age_grace_s: float = 0.0
    requests_per_s: float = 0.0
    request_burst: int = 1
