"""Checks what a client sent before anything is done with it. Pure; names every field that is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import FieldViolation, InvalidRequest
from services.common.sampling import SamplingParams, check_sampling
from services.common.validation import id_violations
from services.frontend.request import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokenPrompt

MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """What this frontend serves; `max_prompt_bytes` counts UTF-8 bytes of text or of all chat messages."""

    model: str
    vocab_size: int
    max_prompt_bytes: int


def check_request(request: GenerationRequest, limits: PromptLimits) -> Prompt:
    """Checks everything that can be checked before the prompt is tokenized; returns the prompt.

    Raises:
        InvalidRequest: names every field that is wrong.
    """
    violations = [
        *id_violations("request_id", request.request_id),
        *model_violations(request.model, limits),
        *prompt_violations(request.prompt, limits),
        *id_violations("cache_salt", request.cache_salt),
        *id_violations("session_id", request.session_id),
        *_sampling_violations(request.sampling, limits.vocab_size),
    ]
    if violations or request.prompt is None:
        raise InvalidRequest(violations)
    return request.prompt


def check_length(prompt: Prompt, token_ids: Sequence[int], max_model_len: int) -> None:
    """Checks that the tokenized prompt leaves room for at least one more token.

    Raises:
        InvalidRequest: it does not, or it has no tokens at all.
    """
    if not token_ids:
        raise InvalidRequest(FieldViolation(_field(prompt), "has no tokens, a prompt needs at least one"))
    if len(token_ids) >= max_model_len:
        limit = max_model_len - 1
        what = f"has {len(token_ids)} tokens, at most {limit} fit in the context"
        raise InvalidRequest(FieldViolation(_field(prompt), what), details={"max_prompt_tokens": str(limit)})


def model_violations(model: str, limits: PromptLimits) -> list[FieldViolation]:
    """The model is the served one, or is left empty."""
    if model in ("", limits.model):
        return []
    return [FieldViolation("model", f"names a model that is not served here; served: {limits.model}")]


def token_violations(name: str, token_ids: Sequence[int], vocab_size: int) -> list[FieldViolation]:
    """There is at least one token, and every id is in the vocabulary."""
    if not token_ids:
        return [FieldViolation(name, "is empty")]
    if max(token_ids) >= vocab_size:
        return [FieldViolation(name, f"holds {max(token_ids)}, ids must be below {vocab_size}")]
    return []


def prompt_violations(prompt: Prompt | None, limits: PromptLimits) -> list[FieldViolation]:
    """The prompt has one form, is not empty and not too large."""
    match prompt:
        case None:
            return [FieldViolation("prompt", "is missing; set one of text, chat and tokens")]
        case TextPrompt(text):
            return _text_violations(text, limits)
        case ChatPrompt():
            return _chat_violations(prompt, limits)
        case TokenPrompt(token_ids):
            return token_violations("tokens.token_ids", token_ids, limits.vocab_size)


def _text_violations(text: str, limits: PromptLimits) -> list[FieldViolation]:
    if not text:
        return [FieldViolation("text", "is empty")]
    return _size_violations("text", len(text.encode()), limits)


def _chat_violations(chat: ChatPrompt, limits: PromptLimits) -> list[FieldViolation]:
    if not chat.messages:
        return [FieldViolation("chat.messages", "is empty")]
    if len(chat.messages) > MAX_MESSAGES:
        return [FieldViolation("chat.messages", f"has {len(chat.messages)} messages, at most {MAX_MESSAGES} may be")]
    violations = [
        FieldViolation(f"chat.messages[{position}].role", "is empty")
        for position, message in enumerate(chat.messages)
        if not message.role
    ]
    size = sum(len(message.role.encode()) + len(message.content.encode()) for message in chat.messages)
    return [*violations, *_size_violations("chat", size, limits)]


def _size_violations(name: str, size: int, limits: PromptLimits) -> list[FieldViolation]:
    if size <= limits.max_prompt_bytes:
        return []
    return [FieldViolation(name, f"has {size} bytes, at most {limits.max_prompt_bytes} are taken")]


def _sampling_violations(sampling: SamplingParams, vocab_size: int) -> Sequence[FieldViolation]:
    try:
        check_sampling(sampling, vocab_size)
    except InvalidRequest as error:
        return error.violations
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        what = f"is {sampling.min_tokens}, must not exceed max_tokens ({sampling.max_tokens})"
        return [FieldViolation("sampling.min_tokens", what)]
    return []


def _field(prompt: Prompt) -> str:
    match prompt:
        case TextPrompt():
            return "text"
        case ChatPrompt():
            return "chat"
        case TokenPrompt():
            return "tokens.token_ids"
