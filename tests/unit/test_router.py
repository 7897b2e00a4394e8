"""The routing policy."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import KvPoolFull, NoWorker
from services.common.types import Load, Tier
from services.frontend.in_flight import InFlight
from services.frontend.router import Route, Router
from services.frontend.routing.candidate import Candidate, Sent, Snapshot
from services.frontend.routing.need import Need
from tests.harness.candidates import candidate, worker


def pick(need: int, *candidates: Candidate, refused: frozenset[tuple[str, str]] = frozenset()) -> Route:
    """One decision of a fresh router."""
    return Router().pick(Need(prompt_tokens=need), Snapshot(candidates=candidates, refused=refused))


def names(route: Route) -> tuple[str, str]:
    """Ids of a route's workers; empty where there is none."""
    ids = [part.worker.worker_id if part else "" for part in (route.prefill, route.decode)]
    return ids[0], ids[1]


P, D, C = Tier.PREFILL, Tier.DECODE, Tier.COLOCATED
DRAINING = Load(free_blocks=100, total_blocks=100, draining=True)


def test_prefill_with_fewest_outstanding_tokens_wins() -> None:
    """What counts for prefill is tokens, not requests."""
    few_long = candidate(P, "p1", Load(outstanding_tokens=900, waiting_requests=1, total_blocks=100, free_blocks=100))
    many_short = candidate(P, "p2", Load(outstanding_tokens=80, waiting_requests=9, total_blocks=100, free_blocks=100))
    assert names(pick(10, few_long, many_short, candidate(D, "d"))) == ("p2", "d")


def test_decode_with_most_room_wins() -> None:
    """What counts for decode is slots and blocks; one whose free blocks cannot take the prompt comes last."""
    busy = candidate(D, "d1", Load(running_requests=6, free_blocks=60, total_blocks=100))
    free = candidate(D, "d2", Load(running_requests=1, free_blocks=60, total_blocks=100))
    tight = candidate(D, "d3", Load(running_requests=0, free_blocks=3, total_blocks=100))
    assert names(pick(100, busy, free, tight, candidate(P, "p"))) == ("p", "d2")


def test_refused_pair_is_not_routed() -> None:
    """The least loaded decode worker is passed over where no prefill worker fits it."""
    loaded = candidate(D, "d2", Load(running_requests=5, free_blocks=50, total_blocks=100))
    route = pick(10, candidate(P, "p"), candidate(D, "d1"), loaded, refused=frozenset({("p", "d1")}))
    assert names(route) == ("p", "d2")


def test_without_prefill_decode_runs_alone() -> None:
    """No prefill worker, a draining one, or none that fits: one worker runs the whole request."""
    assert names(pick(10, candidate(D, "d"))) == ("", "d")
    assert names(pick(10, candidate(D, "d"), candidate(P, "p", DRAINING))) == ("", "d")
    assert names(pick(10, candidate(D, "d"), candidate(P, "p"), refused=frozenset({("p", "d")}))) == ("", "d")
    assert names(pick(10, candidate(C, "c"), candidate(P, "p"))) == ("", "c")


def test_one_token_needs_no_decode() -> None:
    """A request of one token goes to prefill alone where there is one."""
    need = Need(prompt_tokens=10, is_first_token_last=True)
    both = Snapshot(candidates=(candidate(P, "p"), candidate(D, "d")))
    assert names(Router().pick(need, both)) == ("p", "")
    assert names(Router().pick(need, Snapshot(candidates=(candidate(D, "d"),)))) == ("", "d")


def test_short_context_is_passed_over() -> None:
    """A worker whose context is too short for the prompt is not asked, and bounds no other route."""
    route = pick(500, candidate(P, "p1", max_model_len=256), candidate(P, "p2"), candidate(D, "d", max_model_len=600))
    assert names(route) == ("p2", "d")
    assert route.max_model_len == 600


def test_no_worker_says_when_to_come_back() -> None:
    """Nobody there, only prefill there, or everybody draining."""
    for candidates in ((), (candidate(P, "p"),), (candidate(D, "d", DRAINING),)):
        with pytest.raises(NoWorker) as caught:
            pick(10, *candidates)
        assert caught.value.retry_after_s


def test_prompt_that_never_fits_is_told_so() -> None:
    """A prompt larger than every pool is an error of its own, not a reason to wait."""
    with pytest.raises(KvPoolFull, match="no decode worker has room"):
        pick(900, candidate(D, "d", total_blocks=10), candidate(P, "p"))


def test_begun_request_goes_on_with_the_same_weights_alone() -> None:
    """Workers of other weights under the same name are nobody to a request that has tokens, however idle they are."""
    ours, theirs = candidate(Tier.DECODE, "d0"), candidate(Tier.DECODE, "d1")
    layout = dataclasses.replace(theirs.worker.layout, model_fingerprint="next")
    theirs = dataclasses.replace(theirs, worker=dataclasses.replace(theirs.worker, layout=layout))
    need = Need(prompt_tokens=10, is_begun=True, model="m", avoided=frozenset({"d0"}))
    assert Router().pick(need, Snapshot(candidates=(ours, theirs))).decode is ours
    with pytest.raises(NoWorker):
        Router().pick(need, Snapshot(candidates=(theirs,)))


def test_equals_take_turns() -> None:
    """Equal workers are picked in rotation, the same way every time."""
    router = Router()
    snapshot = Snapshot(candidates=tuple(candidate(D, f"d{place}") for place in range(3)))
    picked = [names(router.pick(Need(prompt_tokens=1), snapshot))[1] for _ in range(6)]
    assert sorted(picked[:3]) == ["d0", "d1", "d2"]
    assert picked[:3] == picked[3:]


_LOADS = st.builds(
    Load,
    waiting_requests=st.integers(0, 9),
    outstanding_tokens=st.integers(0, 500),
    running_requests=st.integers(0, 9),
    free_blocks=st.integers(0, 100),
    total_blocks=st.just(100),
    draining=st.booleans(),
)


@given(
    loads=st.lists(st.tuples(st.sampled_from(list(Tier)), _LOADS), max_size=7),
    refused=st.frozensets(st.tuples(st.integers(0, 6), st.integers(0, 6))),
    tokens=st.integers(1, 1000),
)
def test_no_forbidden_route_is_ever_picked(
    loads: list[tuple[Tier, Load]], refused: frozenset[tuple[int, int]], tokens: int
) -> None:
    """Never a draining worker, a refused pair, a wrong tier; and always a route where a worker could serve."""
    candidates = [candidate(tier, f"w{place}", load) for place, (tier, load) in enumerate(loads)]
    pairs = frozenset((f"w{one}", f"w{other}") for one, other in refused)
    try:
        route = pick(tokens, *candidates, refused=pairs)
    except NoWorker:
        assert not any(c.worker.tier is not P and not c.load.draining for c in candidates)
        return
    assert route.decode is not None
    assert not route.decode.load.draining
    assert route.decode.worker.tier is not P
    if route.prefill is not None:
        assert not route.prefill.load.draining
        assert (route.prefill.worker.tier, route.decode.worker.tier) == (P, D)
        assert names(route) not in pairs


@given(prompts=st.lists(st.integers(1, 400), min_size=1, max_size=60), num_workers=st.integers(1, 4))
def test_equal_workers_stay_balanced_between_reports(prompts: list[int], num_workers: int) -> None:
    """Without any load report, what this frontend sent keeps equal workers within one prompt of each other."""
    router = Router()
    sent = {f"p{place}": InFlight() for place in range(num_workers)}
    for prompt in prompts:
        candidates = [
            Candidate(
                worker=worker(P, name),
                load=Load(free_blocks=100, total_blocks=100),
                unfinished=counts.unfinished,
                unreported=counts.unreported,
            )
            for name, counts in sorted(sent.items())
        ]
        route = router.pick(Need(prompt_tokens=prompt), Snapshot(candidates=(*candidates, candidate(D, "x"))))
        sent[names(route)[0]].begin(prompt)
    totals = [counts.unfinished.tokens for counts in sent.values()]
    assert max(totals) - min(totals) <= max(prompts)


def test_cached_tokens_are_no_load_for_prefill_but_take_blocks() -> None:
    """What a worker should find in its cache need not be computed; its blocks are held all the same."""
    counts = InFlight()
    counts.begin(64, cached=48)
    seen = candidate(P, "p", sent=counts.unfinished)
    assert (seen.outstanding_tokens, seen.free_blocks) == (16, 96)
    counts.end(64, cached=48)
    assert counts.unfinished == counts.unreported == Sent()


def test_sent_requests_count_until_reports_must_have_them() -> None:
    """A request counts on top of the load through two reports, and no longer than it lasts."""
    counts = InFlight()
    counts.begin(10)
    counts.reported()
    assert counts.unreported == Sent(1, 10)
    counts.reported()
    assert counts.unreported == Sent(0, 0)
    assert counts.unfinished == Sent(1, 10)
    counts.begin(5)
    counts.end(5)
    counts.end(10)
    assert (counts.unreported, counts.unfinished) == (Sent(0, 0), Sent(0, 0))
