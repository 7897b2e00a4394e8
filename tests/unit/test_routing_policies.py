"""Each routing policy alone: what it says is what it does."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.block_hash import hash_chain, short_hash
from services.common.types import Load, Tier
from services.frontend.router import Router
from services.frontend.routing.candidate import Candidate, Sent, Snapshot
from services.frontend.routing.need import Need
from services.frontend.routing.policies import PolicyChoice, PolicyName
from services.frontend.routing.prefix import Prefix
from services.frontend.routing.session_affinity import UNBOUNDED_REQUESTS, distance
from services.frontend.routing.slow_start import SlowStart
from tests.harness.candidates import candidate

P, D, C = Tier.PREFILL, Tier.DECODE, Tier.COLOCATED
NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


def router(name: PolicyName, **more: float) -> Router:
    """The same policy for both tiers."""
    return Router(PolicyChoice(prefill=name, decode=name, **more))


def decode_of(routing: Router, candidates: tuple[Candidate, ...], need: Need | None = None, **snapshot: object) -> str:
    """Id of the decode worker of one decision."""
    route = routing.pick(need or Need(prompt_tokens=10), Snapshot(candidates=candidates, **snapshot))  # type: ignore[arg-type]
    assert route.decode is not None
    return route.decode.worker_id


@given(names=NAMES, rounds=st.integers(1, 5))
def test_round_robin_gives_everyone_the_same(names: list[str], rounds: int) -> None:
    """Every full round has each worker exactly once, whatever their loads and weights."""
    routing = router(PolicyName.ROUND_ROBIN)
    workers = tuple(
        candidate(D, name, Load(running_requests=place, free_blocks=90, total_blocks=100), weight=place + 1.0)
        for place, name in enumerate(names)
    )
    for _ in range(rounds):
        assert sorted(decode_of(routing, workers) for _ in names) == sorted(names)


@given(weights=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_weighted_gives_exact_shares(weights: list[int]) -> None:
    """After as many picks as the weights add up to, each worker has had its weight in requests."""
    routing = router(PolicyName.WEIGHTED)
    workers = tuple(candidate(D, f"d{place}", weight=float(weight)) for place, weight in enumerate(weights))
    picked = Counter(decode_of(routing, workers) for _ in range(sum(weights)))
    assert picked == {f"d{place}": weight for place, weight in enumerate(weights)}


def test_weighted_picks_come_smoothly() -> None:
    """A heavy worker's picks are spread out, not taken in a run."""
    routing = router(PolicyName.WEIGHTED)
    workers = (candidate(D, "a", weight=4.0), candidate(D, "b"), candidate(D, "c"))
    picked = "".join(decode_of(routing, workers) for _ in range(6))
    assert "aaaa" not in picked + picked


@given(counts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=6))
def test_least_requests_takes_the_fewest_for_its_weight(counts: list[tuple[int, int]]) -> None:
    """Nobody else would have fewer requests for its weight, the new one included."""
    workers = tuple(
        candidate(D, f"d{place}", Load(running_requests=n, free_blocks=90, total_blocks=100), weight=float(w))
        for place, (n, w) in enumerate(counts)
    )
    chosen = decode_of(router(PolicyName.LEAST_REQUESTS), workers)
    by_weight = {f"d{place}": (n + 1) / w for place, (n, w) in enumerate(counts)}
    assert by_weight[chosen] == min(by_weight.values())


def test_weight_counts_in_token_aware() -> None:
    """A worker of twice the weight is taken while it has less than twice the work."""
    for waiting, wanted in ((150, "big"), (190, "big"), (220, "small")):
        load = Load(outstanding_tokens=waiting, free_blocks=100, total_blocks=100)
        small = Load(outstanding_tokens=100, free_blocks=100, total_blocks=100)
        workers = (candidate(P, "big", load, weight=2.0), candidate(P, "small", small), candidate(D, "d"))
        route = router(PolicyName.TOKEN_AWARE).pick(Need(prompt_tokens=10), Snapshot(candidates=workers))
        assert route.prefill is not None
        assert route.prefill.worker_id == wanted


PROMPT = tuple(range(1000, 1064))
HOLDS = frozenset(map(short_hash, hash_chain(PROMPT, 16)[:3]))


def prefix_need(salt: str = "") -> Need:
    """A prompt of four blocks of the harness's block size."""
    return Need(prompt_tokens=len(PROMPT), prefix=Prefix(PROMPT, salt))


@pytest.mark.parametrize(("waiting", "wanted"), [(0, "holder"), (40, "holder"), (56, "empty")])
def test_prefix_is_worth_the_tokens_it_saves(waiting: int, wanted: str) -> None:
    """48 cached tokens outweigh up to 48 tokens that wait at their holder, and no more."""
    busy = Load(outstanding_tokens=waiting, free_blocks=100, total_blocks=100)
    workers = (candidate(D, "d"), candidate(P, "empty"), candidate(P, "holder", busy, known_blocks=HOLDS))
    route = router(PolicyName.PREFIX_AWARE).pick(prefix_need(), Snapshot(candidates=workers))
    assert route.prefill is not None
    assert route.prefill.worker_id == wanted


def test_prefix_counts_for_decode_and_is_counted() -> None:
    """Decode goes where the prompt's blocks are, and the guess shows in the counts."""
    routing = router(PolicyName.PREFIX_AWARE)
    assert {decode_of(routing, (candidate(D, "a"), candidate(D, "b", known_blocks=HOLDS)), prefix_need())} == {"b"}
    assert routing.counts(D) == {"prefix_prompt_tokens": 64, "prefix_matched_tokens": 48}


def test_prefix_of_another_salt_is_no_hit() -> None:
    """Caches of tenants are apart, so the guess keeps them apart, too."""
    assert Prefix(PROMPT).matched_tokens(HOLDS, 16) == 48
    assert Prefix(PROMPT, "tenant").matched_tokens(HOLDS, 16) == 0


@given(tokens=st.lists(st.integers(0, 9), max_size=40), held=st.integers(0, 12), size=st.integers(1, 8))
def test_matched_tokens_are_the_leading_known_blocks(tokens: list[int], held: int, size: int) -> None:
    """The guess is what a cache that holds the first blocks would give, and always leaves a token to compute."""
    chain = [short_hash(digest) for digest in hash_chain(tokens, size)]
    prefix = Prefix(tokens)
    known = frozenset(chain[:held])
    wanted = min(len(known) * size, len(tokens) - 1) if known else 0
    assert prefix.matched_tokens(known, size) == wanted
    assert prefix.matched_tokens(known, size) == wanted
    assert prefix.matched_tokens(frozenset(chain[1:]), size) in (0, len(tokens) - 1)


SESSIONS = [f"session-{place}" for place in range(60)]


def homes(names: list[str], **weights: float) -> dict[str, str]:
    """Where each session goes while nobody has anything to do."""
    workers = tuple(candidate(D, name, weight=weights.get(name, 1.0)) for name in sorted(names))
    routing = router(PolicyName.SESSION)
    return {each: decode_of(routing, workers, Need(prompt_tokens=10, session_id=each)) for each in SESSIONS}


@given(names=NAMES, new=st.just("new"))
def test_only_the_new_workers_sessions_move(names: list[str], new: str) -> None:
    """A worker that comes takes sessions and gives none; when it goes, all is as before."""
    before, after = homes(names), homes([*names, new])
    assert all(after[each] in (before[each], new) for each in SESSIONS)


def test_sessions_follow_the_weights() -> None:
    """A worker of three times the weight has most of the sessions, and keeps its own when it gets heavier."""
    even, heavy = homes(["a", "b"]), homes(["a", "b"], a=3.0)
    assert Counter(heavy.values())["a"] > Counter(even.values())["a"]
    assert all(heavy[each] == "a" for each in SESSIONS if even[each] == "a")


@given(
    requests=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    factor=st.floats(1.0, 2.0),
    session=st.sampled_from(SESSIONS),
)
def test_no_session_goes_to_a_worker_over_its_bound(requests: list[int], factor: float, session: str) -> None:
    """The worker taken has less than its bounded share, and is the first of the session's order that has."""
    workers = tuple(
        candidate(D, f"d{place}", Load(running_requests=count, free_blocks=90, total_blocks=100))
        for place, count in enumerate(requests)
    )
    routing = router(PolicyName.SESSION, session_load_factor=factor)
    chosen = decode_of(routing, workers, Need(prompt_tokens=10, session_id=session))
    bound = max(UNBOUNDED_REQUESTS, factor * (sum(requests) + 1) / len(requests) + 1)
    by_id = {each.worker_id: each for each in workers}
    assert by_id[chosen].requests < bound
    nearer = [each for each in workers if distance(session, each) < distance(session, by_id[chosen])]
    assert all(each.requests >= min(UNBOUNDED_REQUESTS, bound) for each in nearer)
    assert routing.counts(D) == {"session_home": int(not nearer), "session_elsewhere": int(bool(nearer))}


def test_requests_without_a_session_go_by_tokens() -> None:
    """The session policy leaves nothing to chance for clients that name none."""
    busy = Load(running_requests=5, free_blocks=50, total_blocks=100)
    assert decode_of(router(PolicyName.SESSION), (candidate(D, "a", busy), candidate(D, "b"))) == "b"


@pytest.mark.parametrize("name", [PolicyName.ROUND_ROBIN, PolicyName.WEIGHTED])
def test_fresh_worker_gets_a_small_share_at_first(name: PolicyName) -> None:
    """At a quarter of its ramp a worker gets one request where the other gets four."""
    workers = (candidate(D, "fresh", ramp=0.25), candidate(D, "warm"))
    routing = router(name)
    assert Counter(decode_of(routing, workers) for _ in range(20)) == {"warm": 16, "fresh": 4}


@given(window=st.floats(0, 100), age=st.floats(0, 200), later=st.floats(0, 50))
def test_slow_start_only_grows(window: float, age: float, later: float) -> None:
    """The share is never 0, never above 1, never shrinks, and is whole after the window."""
    slow = SlowStart(window)
    assert 0 < slow.ramp(age) <= slow.ramp(age + later) <= 1
    assert slow.ramp(window) == 1


@given(
    name=st.sampled_from(list(PolicyName)),
    tiers=st.lists(st.sampled_from(list(Tier)), min_size=1, max_size=6),
    bits=st.integers(0, 2**12 - 1),
    sent=st.integers(0, 20),
)
def test_every_policy_prefers_workers_in_good_standing(
    name: PolicyName, tiers: list[Tier], bits: int, sent: int
) -> None:
    """Whatever the policy: an ejected worker is taken only where no other of its tier could be, an avoided one last."""
    workers = tuple(candidate(tier, f"w{place}", sent=Sent(sent * place % 7, sent)) for place, tier in enumerate(tiers))
    ejected = frozenset(f"w{place}" for place in range(6) if bits >> place & 1)
    avoided = frozenset(f"w{place}" for place in range(6) if bits >> 6 + place & 1)
    need = Need(prompt_tokens=10, avoided=avoided, session_id="s")
    if not any(tier is not P for tier in tiers):
        return
    route = router(name).pick(need, Snapshot(candidates=workers, ejected=ejected))
    for part in filter(None, (route.prefill, route.decode)):
        others = [each for each in workers if each.worker.tier is part.worker.tier]
        if part.worker_id in avoided:
            assert all(each.worker_id in avoided for each in others)
        elif part.worker_id in ejected:
            assert all(each.worker_id in ejected | avoided for each in others)
