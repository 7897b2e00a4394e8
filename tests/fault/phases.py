"""The phases of a request in which faults come, each made to last by one pause.

    name                    stands still                      who holds the subject
    queued                  prefill, before its first chunk   the prefill worker where it waits behind a blocker
    mid-prefill             prefill, before a later chunk     the prefill worker
    before the transfer     prefill, before its first message the prefill worker
    mid-transfer            prefill, before its last chunk    the prefill worker, which has sent the others
    after the transfer      decode, before its first step     the prefill worker that the KV came from
    before the allocation   decode, in a blocker's step       the decode worker where it waits behind a blocker
    waiting for KV          prefill, before its first chunk   the decode worker that has reserved blocks
    mid-transfer            prefill, before its last chunk    the decode worker, which has got the others
    mid-decode              decode, before a later step       the decode worker
    last token              decode, before its last step      the decode worker

Prompts have three chunks (`CHUNK_TOKENS`); KV is sent chunk by chunk, while the next one is computed.
"""

from services.common.types import Tier
from tests.fault.scenario import Load, Phase, States
from tests.harness.pauses import Pause, Point

CHUNK_TOKENS = 16
LAST_CHUNK = 2 * CHUNK_TOKENS
LAST_STEP = Load().max_tokens - 1

P, D = Tier.PREFILL, Tier.DECODE


def _of(tier: Tier, states: States) -> set[str]:
    return {name for name in states if name.startswith(tier.value)}


def _count(states: States, name: str, count: str) -> int:
    return states[name].counts.get(count, 0)


def _paused(_: States, __: States, paused: set[str]) -> set[str]:
    return paused


def _behind(tier: Tier):
    """Workers of a tier that stand still with one request and have got another one since."""

    def find(before: States, now: States, paused: set[str]) -> set[str]:
        live = "live_requests"
        return {name for name in paused & _of(tier, now) if _count(now, name, live) > _count(before, name, live)}

    return find


def _prefilled(_: States, now: States, paused: set[str]) -> set[str]:
    """Prefill workers that have computed the prompt and stand still before sending it."""
    paused = paused & now.keys()
    return {name for name in paused if not _count(now, name, "running_requests") and _count(now, name, "tickets")}


def _handed_over(before: States, now: States, paused: set[str]) -> set[str]:
    """Prefill workers whose ticket was given back while a decode worker stands still in its first step."""
    done = "source_tickets_released_total"
    return {name for name in _of(P, now) if paused and _count(now, name, done) > _count(before, name, done)}


def _loading(_: States, now: States, paused: set[str]) -> set[str]:
    return {name for name in _of(D, now) if paused and _count(now, name, "loading")}


def _sending(before: States, now: States, paused: set[str]) -> set[str]:
    """Prefill workers that have sent a part of the KV and stand still before they compute the rest."""
    sent = "source_sent_messages"
    return {name for name in paused & now.keys() if _count(now, name, sent) > _count(before, name, sent)}


def _receiving(before: States, now: States, paused: set[str]) -> set[str]:
    return _loading(before, now, paused) if _sending(before, now, paused) else set()


QUEUED = Phase(name="queued", pause=Pause("prefill", Point.CHUNK), tier=P, victims=_behind(P), is_blocked=True)
MID_PREFILL = Phase(name="mid-prefill", pause=Pause("prefill", Point.CHUNK, 1), tier=P, victims=_paused)
BEFORE_TRANSFER = Phase(
    name="before the transfer", pause=Pause("prefill", Point.SEND, 1), tier=P, victims=_prefilled
)  # fmt: skip
MID_TRANSFER = Phase(
    name="mid-transfer", pause=Pause("prefill", Point.CHUNK, LAST_CHUNK), tier=P, victims=_sending
)  # fmt: skip
AFTER_TRANSFER = Phase(
    name="after the transfer", pause=Pause("decode", Point.STEP, 1), tier=P, victims=_handed_over
)  # fmt: skip
BEFORE_ALLOCATION = Phase(
    name="before the allocation", pause=Pause("decode", Point.STEP, 1), tier=D, victims=_behind(D), is_blocked=True
)  # fmt: skip
WAITING_FOR_KV = Phase(name="waiting for KV", pause=Pause("prefill", Point.CHUNK), tier=D, victims=_loading)
TRANSFER_TO_DECODE = Phase(
    name="mid-transfer", pause=Pause("prefill", Point.CHUNK, LAST_CHUNK), tier=D, victims=_receiving
)  # fmt: skip
MID_DECODE = Phase(name="mid-decode", pause=Pause("decode", Point.STEP, 6), tier=D, victims=_paused)
LAST_TOKEN = Phase(name="last token", pause=Pause("decode", Point.STEP, LAST_STEP), tier=D, victims=_paused)
IDLE = Phase(name="idle", pause=None, tier=P, victims=lambda _, now, __: _of(P, now))
LOADED_PREFILL = Phase(
    name="under load", pause=Pause("prefill", Point.CHUNK, 1), tier=P, victims=_paused, is_passed=True
)  # fmt: skip
LOADED_DECODE = Phase(
    name="under load", pause=Pause("decode", Point.STEP, 2), tier=D, victims=_paused, is_passed=True
)  # fmt: skip

PREFILL_PHASES = (QUEUED, MID_PREFILL, BEFORE_TRANSFER, MID_TRANSFER, AFTER_TRANSFER)
DECODE_PHASES = (BEFORE_ALLOCATION, WAITING_FOR_KV, TRANSFER_TO_DECODE, MID_DECODE, LAST_TOKEN)
EVERY_PHASE = (QUEUED, MID_PREFILL, BEFORE_TRANSFER, MID_TRANSFER, BEFORE_ALLOCATION, MID_DECODE)
