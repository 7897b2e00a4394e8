"""Ties a data connection to the control connection that introduced its two ends.

Nothing that listens for data connections asks who connects. The source therefore makes a secret for every channel,
which only the sink's `OpenChannel` stream carries; over the data connection each side then proves, before any KV moves,
that it knows it. The two proofs differ, so that neither can be sent back as the other. Pure.

This keeps strangers out. It does not encrypt: whoever can read or change packets between the workers can still do so.
"""

import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Literal

SECRET_BYTES = 32
PROOF_BYTES = 32


def new_secret() -> bytes:
    """A secret for one channel."""
    return secrets.token_bytes(SECRET_BYTES)


def is_same(given: bytes, expected: bytes) -> bool:
    """Compares secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(given, expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What the control plane has told both sides of a channel about it and about each other."""

    secret: bytes = field(repr=False)
    channel_id: str
    epoch: int
    source_incarnation: str
    sink_incarnation: str

    def proof(self, side: Literal["source", "sink"]) -> bytes:
        """The `PROOF_BYTES` that this side sends to show that it was introduced."""
        facts = [side, self.channel_id, self.epoch, self.source_incarnation, self.sink_incarnation]
        return hmac.digest(self.secret, json.dumps(facts).encode(), "sha256")
