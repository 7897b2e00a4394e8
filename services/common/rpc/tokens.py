"""Bearer tokens: who may call, shown as `authorization: Bearer <token>`.

A file has one token a line; empty lines and lines that begin with # are left out. A server takes any of them, a client
sends the first. So a token is changed without a gap: add the new one below the old one everywhere, then swap the two,
then take the old one away. Tokens are compared in constant time and never logged.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from services.common.config import ConfigError
from services.common.watched import Watched

HEADER = "authorization"
MIN_TOKEN_CHARS = 16
_SCHEME = "Bearer "
# What RFC 6750 lets a token consist of.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,1024}")

Metadata = Iterable[tuple[str, str | bytes]]
Tokens = Watched[tuple[str, ...]]


def watch_tokens(path: str) -> Tokens | None:
    """Follows a file of tokens; None where the path is empty.

    Raises:
        ConfigError: the file cannot be read or holds no token.
    """
    return Watched([Path(path)], lambda: load_tokens(path)) if path else None


def load_tokens(path: str) -> tuple[str, ...]:
    """The tokens of a file, in their order.

    Raises:
        ConfigError: names the line, never the token.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', 'it is not text')}") from None
    tokens: list[str] = []
    for number, line in enumerate(lines, start=1):
        token = line.strip()
        if token and not token.startswith("#"):
            if not _TOKEN.fullmatch(token):
                wanted = f"{MIN_TOKEN_CHARS} to 1024 letters, digits and ._~+/=-"
                raise ConfigError(f"{path}: line {number} is not a token, which has {wanted}")
            tokens.append(token)
    if not tokens:
        raise ConfigError(f"{path} holds no token")
    return tuple(tokens)


def bearer(token: str) -> tuple[str, str]:
    """The metadata that shows a token."""
    return HEADER, _SCHEME + token


def shown_token(metadata: Metadata | None) -> str | None:
    """The token that a call shows; None where there is none or more than one."""
    shown = [value for key, value in metadata or () if key == HEADER]
    if len(shown) != 1 or not isinstance(shown[0], str) or shown[0][: len(_SCHEME)].lower() != _SCHEME.lower():
        return None
    return shown[0][len(_SCHEME) :]


def is_known(token: str, known: tuple[str, ...]) -> bool:
    """Whether it is one of the known ones; takes as long whichever it is."""
    matches = [hmac.compare_digest(token.encode(), each.encode()) for each in known]
    return any(matches)


def name_of(token: str) -> str:
    """A name for a token's bearer that tells nothing of the token."""
    return "token-" + hashlib.sha256(token.encode()).hexdigest()[:16]
