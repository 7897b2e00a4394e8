"""Decides whether decode runs a prompt itself although a prefill worker could: conditional disaggregation. Pure.

Compared is the time until the request decodes, over the workers that the policies have picked:

    split     the prompts that wait at the prefill worker and what of this one is not cached there, then the handoff
    alone     a step of the decode worker with what of the prompt is not cached there, and, for every stream that runs
              there, by how much that step is longer

Both come from what the workers measure themselves; while one of them has not said it, the split is taken. However busy
the prefill worker is, no stream may wait for a prompt much longer than it waits for a token anyway: that is what the
split is for.
"""

import enum

from services.frontend.routing.candidate import Candidate
from services.frontend.routing.estimate import estimate_s
from services.frontend.routing.need import Need

# Alone must take less than this share of the split's time: what is gained less clearly may be an error of measurement.
CLEARLY = 0.9
# A step may become so many times as long by a prompt.
MOST_STRETCH = 2.0
# A prompt of which this share is cached is called cached.
MOSTLY = 0.5


class Shortcut(enum.StrEnum):
    """Why decode ran a prompt by choice; the values are labels of the metric and words of the answer."""

    NONE = "none"
    SHORT_PROMPT = "short_prompt"
    CACHED_PROMPT = "cached_prompt"
    BUSY_PREFILL = "busy_prefill"


def shortcut_of(prefill: Candidate, decode: Candidate, need: Need) -> Shortcut:
    """The shortcut that a request takes past this prefill worker, or none."""
    if not (prefill.load.step_times and decode.load.step_times and decode.load.handoff_times):
        return Shortcut.NONE
    missing = need.prompt_tokens - decode.cached_tokens(need.prefix)
    if not _has_room(decode, need.prompt_tokens) or not _fits_a_step(decode, missing):
        return Shortcut.NONE
    alone_s = _alone_s(decode, missing)
    handoff_s = estimate_s(decode.load.handoff_times, missing)
    to_prefill = need.prompt_tokens - prefill.cached_tokens(need.prefix)
    prefill_s = estimate_s(prefill.load.step_times, prefill.outstanding_tokens + to_prefill)
    if alone_s >= CLEARLY * (prefill_s + handoff_s):
        return Shortcut.NONE
    if missing <= (1 - MOSTLY) * need.prompt_tokens:
        return Shortcut.CACHED_PROMPT
    idle_s = estimate_s(prefill.load.step_times, to_prefill)
    return Shortcut.SHORT_PROMPT if alone_s < CLEARLY * (idle_s + handoff_s) else Shortcut.BUSY_PREFILL


def _has_room(decode: Candidate, tokens: int) -> bool:
    return decode.requests < decode.worker.max_num_seqs and decode.blocks(tokens + 1) <= decode.free_blocks


def _fits_a_step(decode: Candidate, missing: int) -> bool:
    usual_s = estimate_s(decode.load.step_times, max(1, decode.streams))
    return _step_s(decode, missing) <= MOST_STRETCH * usual_s


def _alone_s(decode: Candidate, missing: int) -> float:
    """Seconds that this request waits, and that all streams together wait for it."""
    step_s = _step_s(decode, missing)
    return step_s + decode.streams * (step_s - _step_s(decode, 0))


def _step_s(decode: Candidate, missing: int) -> float:
    """Seconds of a step with the streams, the prompts that decode has yet to run, and so many tokens more."""
    return estimate_s(decode.load.step_times, decode.streams + decode.uncomputed_tokens + missing)
