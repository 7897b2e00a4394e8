"""What crosses between the event loop and the engine thread of a prefill worker: commands one way, reports back."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.block_journal import NO_CHANGES, BlockChanges
from services.common.errors import BatonError
from services.common.types import ChoiceTokens, StageTimes, WorkRequest
from services.engine.blocks import BlockStats
from services.prefill.scheduler import PrefillStats


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a prompt under a key that no other request of this process has."""

    key: int
    request: WorkRequest
    is_awaited: bool = True


@dataclass(frozen=True, slots=True)
class Await:
    """A decode worker asks for a prompt's KV, or does no longer."""

    key: int
    is_awaited: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Compute no more of a prompt; its blocks stay."""

    key: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give a stopped or finished prompt's blocks back."""

    key: int


Command = Submit | Await | Stop | Release


@dataclass(frozen=True, slots=True)
class Advanced:
    """Positions of a prompt below `computed` are in these blocks; the first one comes when the prompt is admitted."""

    key: int
    block_ids: Sequence[int]
    computed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A prompt has its first tokens; its blocks stay until they are released."""

    key: int
    block_ids: Sequence[int]
    first_tokens: tuple[ChoiceTokens, ...]
    stages: StageTimes
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A prompt failed alone; its blocks stay until they are released."""

    key: int
    error: BatonError


@dataclass(frozen=True, slots=True)
class Report:
    """What one step or command changed: events in order, and the state after them."""

    events: tuple[Advanced | Finished | Failed, ...]
    prompts: PrefillStats
    blocks: BlockStats
    known: BlockChanges = NO_CHANGES
