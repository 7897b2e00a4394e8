"""When decode runs a prompt by choice: estimates, and the decision over them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.block_hash import hash_chain, short_hash
from services.common.types import Load, SizedTime, Tier
from services.frontend.fallback import Fallback, fallback_of
from services.frontend.router import Route, Router
from services.frontend.routing.candidate import Candidate, Sent, Snapshot
from services.frontend.routing.estimate import estimate_s
from services.frontend.routing.need import Need
from services.frontend.routing.policies import PolicyChoice
from services.frontend.routing.prefix import Prefix
from services.frontend.routing.shortcut import MOST_STRETCH, Shortcut, shortcut_of
from tests.harness.candidates import candidate

MS = 10**6
P, D = Tier.PREFILL, Tier.DECODE
# A step of 10 ms and 0.1 ms more for each token: twice as long as for one token at a little over a hundred.
STEPS = tuple(SizedTime(tokens, 10 * MS + tokens * MS // 10) for tokens in (1, 16, 256, 2048))
# A handoff of 5 ms and 0.01 ms more for each token.
HANDOFFS = tuple(SizedTime(tokens, 5 * MS + tokens * MS // 100) for tokens in (1, 16, 256, 2048))
MEASURED = st.lists(st.builds(SizedTime, st.integers(-3, 5000), st.integers(-5, 10**10)), max_size=8).map(tuple)


def load(**counts: Any) -> Load:
    """Of an idle worker of known speed, unless said otherwise."""
    return Load(**{"free_blocks": 1000, "total_blocks": 1000, "step_times": STEPS, "handoff_times": HANDOFFS, **counts})


def chosen(
    tokens: int,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    *,
    known: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    prefix: Prefix | None = None,
    unreported: Sent = Sent(),  # noqa: B008 - it is frozen
) -> Shortcut:
    """The decision over one pair of workers with these loads; `known` blocks of prefill and decode."""
    facts = {"max_model_len": 4096, "total_blocks": 1000}
    first = candidate(P, "p", load(**(prefill or {})), known_blocks=known[0], **facts)
    second = candidate(D, "d", load(**(decode or {})), known_blocks=known[1], **facts)
    second = dataclasses.replace(second, unreported=unreported)
    return shortcut_of(first, second, Need(prompt_tokens=tokens, prefix=prefix or Prefix()))


@given(MEASURED, st.integers(0, 10**5), st.integers(0, 10**5))
def test_more_tokens_never_take_less(measured: Sequence[SizedTime], fewer: int, more: int) -> None:
    """Estimates are finite, not negative and grow with size, whatever a worker reports."""
    low, high = sorted((fewer, more))
    assert 0 <= estimate_s(measured, low) <= estimate_s(measured, high) < float("inf")


@given(st.integers(0, 10**8), st.integers(0, 10**6), st.integers(1, 2048))
def test_a_fixed_cost_and_one_for_each_token_are_found_again(fixed_ns: int, token_ns: int, tokens: int) -> None:
    """Between measured sizes the estimate is exact where time has that form."""
    measured = tuple(SizedTime(size, fixed_ns + size * token_ns) for size in (1, 9, 100, 2048))
    assert abs(estimate_s(measured, tokens) - (fixed_ns + tokens * token_ns) * 1e-9) < 1e-9


def test_beyond_what_was_measured_time_is_in_proportion() -> None:
    """Nobody is taken to be quicker with a size that it has not shown."""
    assert estimate_s((SizedTime(10, 100 * MS),), 30) == 0.3
    assert estimate_s((SizedTime(10, 100 * MS),), 1) == 0.01
    assert estimate_s((), 30) == 0.0


def test_short_prompts_stay_and_long_ones_are_split() -> None:
    """Between idle workers of equal speed it is the handoff that decides, and it never does for a long prompt."""
    assert [chosen(tokens) for tokens in (1, 20)] == [Shortcut.SHORT_PROMPT] * 2
    assert [chosen(tokens) for tokens in (200, 2000)] == [Shortcut.NONE] * 2


def test_nothing_is_decided_on_what_is_not_known() -> None:
    """As long as one of the three times was not reported, as by a fresh or an older worker, the prompt is split."""
    assert chosen(1, prefill={"step_times": ()}) is Shortcut.NONE
    assert chosen(1, decode={"step_times": ()}) is Shortcut.NONE
    assert chosen(1, decode={"handoff_times": ()}) is Shortcut.NONE


def test_a_busy_prefill_worker_is_passed_by_with_what_fits() -> None:
    """What waits there keeps a prompt that is not quite short at decode, but never a long one."""
    waiting = {"outstanding_tokens": 4000}
    quick = {"handoff_times": (SizedTime(2048, MS),)}
    assert chosen(80, decode=quick) is Shortcut.NONE
    assert chosen(80, prefill=waiting, decode=quick) is Shortcut.BUSY_PREFILL
    assert chosen(500, prefill=waiting, decode=quick) is Shortcut.NONE


def test_streams_count_for_as_long_as_they_would_wait() -> None:
    """The same prompt is split once enough streams would wait for it."""
    assert chosen(20, decode={"running_requests": 1}) is Shortcut.SHORT_PROMPT
    assert chosen(20, decode={"running_requests": 6}) is Shortcut.NONE
    assert chosen(20, decode={"running_requests": 5, "handoffs": 1}) is Shortcut.NONE


def test_a_prompt_that_is_mostly_cached_stays() -> None:
    """Only what is missing counts at decode; where the prefill worker has as much of it, the handoff decides."""
    prompt = tuple(range(2000))
    blocks = frozenset(map(short_hash, hash_chain(prompt, 16)[:120]))
    assert chosen(2000, prefix=Prefix(prompt)) is Shortcut.NONE
    assert chosen(2000, prefix=Prefix(prompt), known=(frozenset(), blocks)) is Shortcut.CACHED_PROMPT
    assert chosen(2000, prefix=Prefix(prompt), known=(blocks, frozenset())) is Shortcut.NONE
    assert chosen(2000, prefix=Prefix(prompt, "other"), known=(blocks, blocks)) is Shortcut.NONE


def test_no_shortcut_where_it_would_have_to_wait() -> None:
    """A decode worker without a slot or without blocks for the prompt gets no prompt by choice."""
    assert chosen(20) is Shortcut.SHORT_PROMPT
    assert chosen(20, decode={"running_requests": 8}) is Shortcut.NONE
    assert chosen(20, decode={"free_blocks": 1}) is Shortcut.NONE


def test_prompts_on_their_way_count() -> None:
    """A burst of short prompts within one report does not add up to a long one; what is handed over is no prompt."""
    assert chosen(20, unreported=Sent(4, 100, 0), prefill={"outstanding_tokens": 4000}) is Shortcut.NONE
    assert chosen(20, unreported=Sent(4, 100, 100)) is Shortcut.SHORT_PROMPT


@given(
    tokens=st.integers(1, 300),
    streams=st.integers(0, 7),
    uncomputed=st.integers(0, 100),
    fixed_ns=st.integers(0, 100 * MS),
    token_ns=st.integers(0, MS),
)
def test_no_stream_waits_much_longer_than_for_a_token(
    tokens: int, streams: int, uncomputed: int, fixed_ns: int, token_ns: int
) -> None:
    """However much waits at the prefill worker, a prompt at decode at most doubles a step."""
    steps = tuple(SizedTime(size, fixed_ns + size * token_ns) for size in (1, 4, 16, 64, 256))
    decode = {"running_requests": streams, "outstanding_tokens": uncomputed, "step_times": steps}
    if chosen(tokens, {"outstanding_tokens": 10**5}, decode) is not Shortcut.NONE:
        usual_s = estimate_s(steps, max(1, streams))
        assert estimate_s(steps, streams + uncomputed + tokens) <= MOST_STRETCH * usual_s


@given(tokens=st.integers(1, 150), waiting=st.integers(0, 4000), streams=st.integers(0, 7), slower=st.integers(1, 50))
def test_a_slower_handoff_or_queue_never_takes_a_shortcut_away(
    tokens: int, waiting: int, streams: int, slower: int
) -> None:
    """What makes the split slower makes decode alone no worse a choice."""
    decode = {"running_requests": streams}
    assume(chosen(tokens, {"outstanding_tokens": waiting}, decode) is not Shortcut.NONE)
    late = tuple(SizedTime(each.tokens, each.time_ns * slower) for each in HANDOFFS)
    assert (
        chosen(tokens, {"outstanding_tokens": waiting * slower}, {**decode, "handoff_times": late}) is not Shortcut.NONE
    )


def route(*workers: Candidate, need: Need, has_shortcuts: bool = True) -> Route:
    """One decision of a fresh router."""
    return Router(PolicyChoice(has_shortcuts=has_shortcuts)).pick(need, Snapshot(candidates=workers))


def test_a_router_takes_shortcuts_where_it_may() -> None:
    """The route has the decode worker alone and says why; off, and on workers that failed it, the prompt is split."""
    workers = candidate(P, "p", load()), candidate(D, "d", load())
    need = Need(prompt_tokens=10)
    taken = route(*workers, need=need)
    assert (taken.kind, taken.shortcut) == ("decode_only", Shortcut.SHORT_PROMPT)
    assert fallback_of(taken, Snapshot(candidates=workers), is_begun=False) is Fallback.NONE
    assert route(*workers, need=need, has_shortcuts=False).kind == "split"
    assert route(*workers, need=dataclasses.replace(need, avoided=frozenset({"d"}))).kind == "split"
    first_only = route(*workers, need=dataclasses.replace(need, is_first_token_last=True))
    assert (first_only.kind, first_only.shortcut) == ("prefill_only", Shortcut.NONE)
