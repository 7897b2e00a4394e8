"""Translates between `generation.proto` and the frontend's plain types; the only place that does.

Ranges are checked in `validate.py`; what cannot be expressed in plain types does not get past here.
"""

from baton.v1 import generation_pb2 as pb

from services.common.convert import (
    finish_from_proto,
    finish_to_proto,
    priority_from_proto,
    priority_to_proto,
    sampling_from_proto,
    sampling_to_proto,
    stages_from_proto,
    stages_to_proto,
    token_from_proto,
    token_to_proto,
    usage_from_proto,
    usage_to_proto,
)
from services.frontend.fallback import Fallback
from services.frontend.request import (
    ChatMessage,
    ChatPrompt,
    Completion,
    Delta,
    GenerationRequest,
    Output,
    Prompt,
    ServedModel,
    TextPrompt,
    TokenPrompt,
)
from services.frontend.routing.shortcut import Shortcut

_FALLBACKS = {
    Fallback.NONE: pb.FALLBACK_UNSPECIFIED,
    Fallback.NO_PREFILL_WORKER: pb.FALLBACK_NO_PREFILL_WORKER,
    Fallback.NO_COMPATIBLE_PREFILL_WORKER: pb.FALLBACK_NO_COMPATIBLE_PREFILL_WORKER,
    Fallback.NO_PROVEN_CHANNEL: pb.FALLBACK_NO_PROVEN_CHANNEL,
    Fallback.MIGRATION: pb.FALLBACK_MIGRATION,
}
_FALLBACKS_BACK = {number: fallback for fallback, number in _FALLBACKS.items()}
_SHORTCUTS = {
    Shortcut.NONE: pb.SHORTCUT_UNSPECIFIED,
    Shortcut.SHORT_PROMPT: pb.SHORTCUT_SHORT_PROMPT,
    Shortcut.CACHED_PROMPT: pb.SHORTCUT_CACHED_PROMPT,
    Shortcut.BUSY_PREFILL: pb.SHORTCUT_BUSY_PREFILL,
}
_SHORTCUTS_BACK = {number: shortcut for shortcut, number in _SHORTCUTS.items()}


def request_from_proto(message: pb.GenerateRequest, request_id: str, deadline: float) -> GenerationRequest:
    """A client's request; `request_id` is used where the client named none."""
    return GenerationRequest(
        request_id=message.request_id or request_id,
        model=message.model,
        prompt=_prompt_from_proto(message),
        sampling=sampling_from_proto(message.sampling),
        cache_salt=message.cache_salt,
        priority=priority_from_proto(message.priority),
        session_id=message.session_id,
        resumable=message.resumable,
        deadline=deadline,
    )


def request_to_proto(request: GenerationRequest) -> pb.GenerateRequest:
    """A client's request; the deadline travels with the call."""
    message = pb.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        sampling=sampling_to_proto(request.sampling),
        cache_salt=request.cache_salt,
        priority=priority_to_proto(request.priority),
        session_id=request.session_id,
        resumable=request.resumable,
    )
    match request.prompt:
        case None:
            pass
        case TextPrompt(text):
            message.text = text
        case ChatPrompt():
            message.chat.CopyFrom(_chat_to_proto(request.prompt))
        case TokenPrompt(token_ids):
            # An empty list is a prompt too, though a wrong one.
            message.tokens.SetInParent()
            message.tokens.token_ids.extend(token_ids)
    return message


def tokenize_prompt(message: pb.TokenizeRequest) -> Prompt | None:
    """What to tokenize; None where no form of it is set."""
    match message.WhichOneof("input"):
        case "text":
            return TextPrompt(message.text)
        case "chat":
            return _chat_from_proto(message.chat)
        case _:
            return None


def tokenize_request(model: str, prompt: TextPrompt | ChatPrompt) -> pb.TokenizeRequest:
    """A request to tokenize."""
    if isinstance(prompt, TextPrompt):
        return pb.TokenizeRequest(model=model, text=prompt.text)
    return pb.TokenizeRequest(model=model, chat=_chat_to_proto(prompt))


def output_to_proto(output: Output) -> pb.GenerateResponse:
    """A piece of the answer."""
    return pb.GenerateResponse(
        request_id=output.request_id,
        deltas=[_delta_to_proto(delta) for delta in output.deltas],
        resume_token=output.resume_token,
        completion=None if output.completion is None else _completion_to_proto(output.completion),
    )


def output_from_proto(message: pb.GenerateResponse) -> Output:
    """A piece of the answer."""
    return Output(
        request_id=message.request_id,
        deltas=tuple(_delta_from_proto(delta) for delta in message.deltas),
        completion=_completion_from_proto(message.completion) if message.HasField("completion") else None,
        resume_token=message.resume_token,
    )


def model_to_proto(model: ServedModel) -> pb.Model:
    """A served model."""
    return pb.Model(
        name=model.name,
        max_model_len=model.max_model_len,
        prefill_workers=model.prefill_workers,
        decode_workers=model.decode_workers,
    )


def model_from_proto(message: pb.Model) -> ServedModel:
    """A served model."""
    return ServedModel(
        name=message.name,
        max_model_len=message.max_model_len,
        prefill_workers=message.prefill_workers,
        decode_workers=message.decode_workers,
    )


def _prompt_from_proto(message: pb.GenerateRequest) -> Prompt | None:
    match message.WhichOneof("prompt"):
        case "text":
            return TextPrompt(message.text)
        case "chat":
            return _chat_from_proto(message.chat)
        case "tokens":
            return TokenPrompt(tuple(message.tokens.token_ids))
        case _:
            return None


def _chat_from_proto(message: pb.ChatPrompt) -> ChatPrompt:
    return ChatPrompt(tuple(ChatMessage(each.role, each.content) for each in message.messages))


def _chat_to_proto(chat: ChatPrompt) -> pb.ChatPrompt:
    return pb.ChatPrompt(messages=[pb.ChatMessage(role=each.role, content=each.content) for each in chat.messages])


def _delta_to_proto(delta: Delta) -> pb.ChoiceDelta:
    return pb.ChoiceDelta(
        choice_index=delta.choice,
        text=delta.text,
        tokens=[token_to_proto(token) for token in delta.tokens],
        finish_reason=finish_to_proto(delta.finish),
        stop_match=delta.stop_match,
    )


def _delta_from_proto(message: pb.ChoiceDelta) -> Delta:
    return Delta(
        choice=message.choice_index,
        text=message.text,
        tokens=tuple(token_from_proto(token) for token in message.tokens),
        finish=finish_from_proto(message.finish_reason),
        stop_match=message.stop_match,
    )


def _completion_to_proto(completion: Completion) -> pb.Completion:
    return pb.Completion(
        usage=usage_to_proto(completion.usage),
        stages=stages_to_proto(completion.stages),
        seed=completion.seed,
        prefill_worker_id=completion.prefill_worker_id,
        decode_worker_id=completion.decode_worker_id,
        colocated=completion.colocated,
        moves=completion.moves,
        hedged=completion.hedged,
        fallback=_FALLBACKS[completion.fallback],
        shortcut=_SHORTCUTS[completion.shortcut],
    )


def _completion_from_proto(message: pb.Completion) -> Completion:
    return Completion(
        usage=usage_from_proto(message.usage),
        stages=stages_from_proto(message.stages),
        seed=message.seed,
        prefill_worker_id=message.prefill_worker_id,
        decode_worker_id=message.decode_worker_id,
        colocated=message.colocated,
        moves=message.moves,
        hedged=message.hedged,
        fallback=_FALLBACKS_BACK.get(message.fallback, Fallback.NONE),
        shortcut=_SHORTCUTS_BACK.get(message.shortcut, Shortcut.NONE),
    )
