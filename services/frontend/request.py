"""What a client asks for and what it gets, as plain data.

Knows nothing of protobuf; `convert.py` is the edge. Shared by the pipeline, the servicer and the client.
"""

from dataclasses import dataclass, field

from services.common.priority import Priority
from services.common.sampling import SamplingParams
from services.common.types import FinishReason, StageTimes, Token, Usage
from services.frontend.fallback import Fallback
from services.frontend.routing.shortcut import Shortcut

# What is said of field `chat` where the checkpoint cannot render one; clients may then send plain text instead.
NO_CHAT_TEMPLATE = "needs a chat template and this checkpoint has none; send text or token ids"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text; the checkpoint's post-processor adds its special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, rendered with the checkpoint's chat template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Vocabulary indices, taken as they are."""

    token_ids: tuple[int, ...]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to continue it; `deadline` is on the monotonic clock, in seconds.

    `prompt` is None where the client sent no form of it at all. A `resumable` one outlives its client's connection.
    """

    request_id: str
    prompt: Prompt | None
    deadline: float
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: str = ""
    cache_salt: str = ""
    priority: Priority = Priority.NORMAL
    session_id: str = ""
    resumable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New output of one choice; `stop_match` is the stop string that ended it."""

    choice: int
    text: str
    tokens: tuple[Token, ...]
    finish: FinishReason | None = None
    stop_match: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """How a request went; worker ids are empty where no worker of that tier had a part."""

    usage: Usage
    stages: StageTimes
    seed: int
    prefill_worker_id: str = ""
    decode_worker_id: str = ""
    colocated: bool = False
    moves: int = 0
    hedged: bool = False
    fallback: Fallback = Fallback.NONE
    shortcut: Shortcut = Shortcut.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A piece of the answer; `completion` comes with the last one only, `resume_token` alone and before all others."""

    request_id: str
    deltas: tuple[Delta, ...] = ()
    completion: Completion | None = None
    resume_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and who serves it now; `max_model_len` is the longest prompt plus output, in tokens."""

    name: str
    max_model_len: int
    prefill_workers: int
    decode_workers: int
