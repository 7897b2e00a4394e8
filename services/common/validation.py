"""Checks a request against a model's limits before it comes near a batch. Pure."""

from services.common.errors import FieldViolation, InvalidRequest
from services.common.sampling import check_sampling
from services.common.types import WorkRequest

MAX_ID_CHARS = 128


def check_work_request(request: WorkRequest, *, vocab_size: int, max_model_len: int) -> None:
    """Checks what a worker cannot serve.

    Raises:
        InvalidRequest: names every field that is wrong.
    """
    violations = [
        *id_violations("request_id", request.request_id),
        *id_violations("ticket_id", request.ticket_id),
        *id_violations("cache_salt", request.cache_salt),
        *token_violations(request.token_ids, vocab_size=vocab_size, max_model_len=max_model_len),
    ]
    violations += emitted_violations(request, vocab_size=vocab_size, max_model_len=max_model_len)
    if request.sampling.seed is None and not request.sampling.is_greedy:
        violations.append(FieldViolation("sampling.seed", "is unset, must be given to a worker where temperature > 0"))
    if violations:
        raise InvalidRequest(violations)
    check_sampling(request.sampling, vocab_size)


def id_violations(name: str, value: str) -> list[FieldViolation]:
    """Ids and salts are printable ASCII and short, so that they can stand in logs and headers."""
    if len(value) > MAX_ID_CHARS:
        return [FieldViolation(name, f"has {len(value)} characters, at most {MAX_ID_CHARS} are allowed")]
    if not (value.isascii() and (value.isprintable() or not value)):
        return [FieldViolation(name, "has characters that are not printable ASCII")]
    return []


def token_violations(token_ids: tuple[int, ...], *, vocab_size: int, max_model_len: int) -> list[FieldViolation]:
    """A prompt has at least one token, leaves room for one more, and every id is in the vocabulary."""
    if not token_ids:
        return [FieldViolation("token_ids", "is empty, a prompt needs at least one token")]
    if len(token_ids) >= max_model_len:
        limit = max_model_len - 1
        return [FieldViolation("token_ids", f"has {len(token_ids)} tokens, at most {limit} fit in the context")]
    if max(token_ids) >= vocab_size or min(token_ids) < 0:
        wrong = max(token_ids) if max(token_ids) >= vocab_size else min(token_ids)
        return [FieldViolation("token_ids", f"holds {wrong}, ids must be in [0, {vocab_size})")]
    return []


def emitted_violations(request: WorkRequest, *, vocab_size: int, max_model_len: int) -> list[FieldViolation]:
    """Output so far is of choices that exist, leaves room for more, and comes without a handoff."""
    if request.emitted and request.handoff is not None:
        return [FieldViolation("emitted", "comes with a handoff; the KV of a request that goes on is computed here")]
    found: list[FieldViolation] = []
    for choice, token_ids in request.emitted.items():
        if not 0 <= choice < request.sampling.n:
            found.append(FieldViolation("emitted", f"has choice {choice} of {request.sampling.n}"))
        if len(request.token_ids) + len(token_ids) >= max_model_len:
            found.append(FieldViolation("emitted", f"fills the context of {max_model_len} tokens"))
        if any(not 0 <= token < vocab_size for token in token_ids):
            found.append(FieldViolation("emitted", f"holds an id outside of [0, {vocab_size})"))
    return found
