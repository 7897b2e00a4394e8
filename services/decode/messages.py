"""What crosses between the event loop and the engine thread of a decode worker: commands one way, reports back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.block_journal import NO_CHANGES, BlockChanges
from services.common.errors import BatonError
from services.common.types import ChoiceTokens, WorkRequest
from services.decode.scheduler import DecodeStats
from services.engine.blocks import BlockStats


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a request under a key that no other request of this process has."""

    key: int
    request: WorkRequest


@dataclass(frozen=True, slots=True)
class Join:
    """The KV of a reserved request is verified and in its blocks; `first_tokens` has the choices that go on."""

    key: int
    first_tokens: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a request and give its blocks back; nothing writes into them any more."""

    key: int


Command = Submit | Join | Drop


@dataclass(frozen=True, slots=True)
class Reserved:
    """A request has blocks for its prompt; positions below `start_token` are in this worker's prefix cache.

    Comes again where the request was preempted, and once for each choice that another worker began.
    """

    key: int
    block_ids: Sequence[int]
    start_token: int


@dataclass(slots=True)
class Progress:
    """What a request has cost so far; written by the engine thread, read by the worker when the request has ended."""

    submitted_ns: int = 0
    started_ns: int = 0
    first_token_ns: int = 0
    joined_ns: int = 0
    decoding_ns: int = 0
    ended_ns: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Emitted:
    """New tokens of a request; `progress` comes with its last ones."""

    key: int
    choices: tuple[ChoiceTokens, ...]
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed alone; it is forgotten and its blocks are given back."""

    key: int
    error: BatonError


Event = Reserved | Emitted | Failed


@dataclass(frozen=True, slots=True)
class Report:
    """What one step or command changed: events in order, and the state after them."""

    events: tuple[Event, ...]
    runs: DecodeStats
    blocks: BlockStats
    prefilled_tokens: int
    preemptions: int
    known: BlockChanges = NO_CHANGES
