"""What the two sides of a channel say to each other, as plain data; `kv_transfer.proto` explains each field.

Knows neither protobuf nor torch; `convert.py` turns these into wire messages and back.
"""

from dataclasses import dataclass, field

from services.common.types import ChoiceTokens, KvLayout, StageTimes, WorkerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRequest:
    """A sink wants a channel."""

    sink: WorkerInfo
    source_incarnation: str
    transport: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOffer:
    """Where and how the two sides meet."""

    channel_id: str
    epoch: int
    layout: KvLayout
    max_message_bytes: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOrder:
    """Sets a key of a channel that is being built; a value of None reads it."""

    channel_id: str
    epoch: int
    secret: bytes = field(repr=False)
    key: str
    value: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelProbe:
    """The source sends this many bytes: its proof, then the known pattern."""

    sequence: int
    num_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeader:
    """Announces the KV of token positions [start_token, end_token)."""

    sequence: int
    fetch_id: str
    epoch: int
    start_token: int
    end_token: int
    num_bytes: int
    checksum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchEnd:
    """A fetch is over; `error` names the error class where it failed."""

    fetch_id: str
    first_tokens: tuple[ChoiceTokens, ...] = ()
    stages: StageTimes = field(default_factory=StageTimes)
    cached_tokens: int = 0
    error: str = ""
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """How a ticket was given back: whether it was open, and what of it was stopped before its time."""

    was_open: bool
    stopped_prefill: bool = False
    stopped_sending: bool = False


ChannelEvent = ChannelOffer | ChannelProbe | ChunkHeader | FetchEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """A sink asks for the KV of a ticket from `start_token` on."""

    request_id: str
    fetch_id: str
    ticket_id: str
    channel_id: str
    epoch: int
    start_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOrder:
    """Asks a source to send a known pattern over a channel."""

    channel_id: str
    epoch: int
    probe_id: str
