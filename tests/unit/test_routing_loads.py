"""What each policy does to skewed loads, over a simulated cluster in virtual time."""

import random
import sys
from collections.abc import Callable, Sequence

import pytest

from services.common.types import Tier
from services.frontend.routing.ejection import EjectionRules
from services.frontend.routing.policies import PolicyChoice, PolicyName
from services.frontend.routing.slow_start import SlowStart
from tests.harness.routing_sim import Arrival, Result, Simulation, SimWorker

P, D = Tier.PREFILL, Tier.DECODE
NEVER = EjectionRules(failures=0)
SPEED = 10_000.0


def speed(value: float = SPEED) -> Callable[[float], float]:
    """The same at any age."""
    return lambda _: value


def prefills(*speeds: float, **facts: object) -> list[SimWorker]:
    """Prefill workers p0, p1, … of these speeds, and a decode worker that is never the bottleneck."""
    made = [SimWorker(f"p{place}", P, speed(value), **facts) for place, value in enumerate(speeds)]  # type: ignore[arg-type]
    return [*made, SimWorker("d0", D, speed(1e6), slots=1000)]


def play(workers: Sequence[SimWorker], load: Sequence[Arrival], name: PolicyName, **more: object) -> Result:
    """A load under one policy for both tiers; `pytest -rP` shows how it went."""
    result = Simulation(workers, PolicyChoice(prefill=name, decode=name), **more).run(load)  # type: ignore[arg-type]
    if len(result.ttft) > 1:
        times = f"mean {result.mean_ttft * 1000:.0f} ms, p99 {result.p99_ttft * 1000:.0f} ms"
        sys.stdout.write(f"{name.value}: {times}, {result.computed} tokens computed, {result.failures} failures\n")
    return result


def poisson(
    per_s: float, seconds: float, prompt: Callable[[random.Random], Sequence[int]], seed: int = 1
) -> list[Arrival]:
    """Requests that come at random, of one token each."""
    rng, at, load = random.Random(seed), 0.0, list[Arrival]()
    while (at := at + rng.expovariate(per_s)) < seconds:
        load.append(Arrival(at, prompt(rng)))
    return load


def skewed(rng: random.Random) -> Sequence[int]:
    """Nine short prompts to a very long one, none like another."""
    return range(start := rng.randrange(10**8), start + (8000 if rng.random() < 0.1 else 100))


def plain(rng: random.Random) -> Sequence[int]:
    """Prompts of 500 tokens, none like another."""
    return range(start := rng.randrange(10**8), start + 500)


def test_skewed_prompts_go_by_tokens() -> None:
    """Where a few prompts are very long, counting tokens beats counting requests, and that beats turns."""
    load = poisson(30.0, 60.0, skewed)
    turns, requests, tokens = (
        play(prefills(*[SPEED] * 4), load, name).mean_ttft
        for name in (PolicyName.ROUND_ROBIN, PolicyName.LEAST_REQUESTS, PolicyName.TOKEN_AWARE)
    )
    assert tokens < 0.9 * requests < 0.9 * turns


@pytest.mark.parametrize("name", [PolicyName.TOKEN_AWARE, PolicyName.LEAST_REQUESTS])
def test_slow_worker_gets_what_it_can_do(name: PolicyName) -> None:
    """A worker ten times slower gets a small share, and hardly anybody waits for it; turns make many wait."""
    load = poisson(40.0, 60.0, plain)
    turns = play(prefills(SPEED / 10, SPEED, SPEED), load, PolicyName.ROUND_ROBIN)
    by_load = play(prefills(SPEED / 10, SPEED, SPEED), load, name)
    assert turns.share("p0") > 0.3
    assert by_load.share("p0") < 0.15
    assert by_load.mean_ttft < turns.mean_ttft / 10


def test_weights_tell_what_load_cannot() -> None:
    """Weighted turns give workers of unequal speed what they can do, where plain turns drown the slow one."""
    load = poisson(18.0, 60.0, plain)
    workers = prefills(SPEED / 4, SPEED)
    workers[1].weight = 4.0
    weighted = play(workers, load, PolicyName.WEIGHTED)
    assert weighted.share("p1") == pytest.approx(0.8, abs=0.01)
    assert weighted.mean_ttft < play(prefills(SPEED / 4, SPEED), load, PolicyName.ROUND_ROBIN).mean_ttft / 2


def shared(rng: random.Random) -> Sequence[int]:
    """One of 24 long system prompts, some far more frequent than others, and a question of its own."""
    which = min(23, int(rng.paretovariate(0.7)) - 1)
    start = rng.randrange(10**8)
    return [*range(which * 10_000, which * 10_000 + 1600), *range(start, start + 100)]


def test_shared_prefixes_are_computed_where_they_are() -> None:
    """With caches that cannot hold all prefixes, the policy that knows them computes far less and answers sooner."""
    load = poisson(25.0, 30.0, shared)
    by_tokens, by_prefix = (
        play(prefills(*[SPEED] * 4, cache_blocks=900), load, name)
        for name in (PolicyName.TOKEN_AWARE, PolicyName.PREFIX_AWARE)
    )
    assert by_prefix.computed < 0.55 * by_tokens.computed
    assert by_prefix.mean_ttft < 0.55 * by_tokens.mean_ttft


def test_one_prefix_for_all_overloads_nobody() -> None:
    """A prefix that everyone shares does not draw everyone to one worker: queues outweigh the hit."""

    def same(rng: random.Random) -> Sequence[int]:
        start = rng.randrange(10**8)
        return [*range(800), *range(start, start + 800)]

    result = play(prefills(*[SPEED] * 4, cache_blocks=10**5), poisson(40.0, 15.0, same), PolicyName.PREFIX_AWARE)
    assert max(result.share(f"p{place}") for place in range(4)) < 0.4
    assert result.p99_ttft < 1.0


def conversations(count: int, turns: int, hot: int = 0) -> list[Arrival]:
    """Sessions whose every turn repeats all before it; `hot` requests more of one session, all at once."""
    rng = random.Random(2)
    load = [
        Arrival(rng.uniform(0, 5) + 4.0 * turn, range(place * 10**5, place * 10**5 + 300 * (turn + 1)), 1, f"s{place}")
        for place in range(count)
        for turn in range(turns)
    ]
    return load + [Arrival(10.0 + 0.002 * number, range(300), 20, "hot") for number in range(hot)]


@pytest.mark.parametrize("name", [PolicyName.SESSION, PolicyName.PREFIX_AWARE])
def test_conversations_find_their_cache(name: PolicyName) -> None:
    """Kept on a worker, or drawn to what it holds: little more is computed than what is new in each turn."""
    load = conversations(60, 8)
    by_tokens, followed = (
        play(prefills(*[SPEED] * 4, cache_blocks=10**5), load, each) for each in (PolicyName.TOKEN_AWARE, name)
    )
    new = 60 * 8 * 300
    assert new <= followed.computed < 1.35 * new
    assert by_tokens.computed > 1.8 * new
    assert followed.mean_ttft < 0.6 * by_tokens.mean_ttft


def test_hot_session_spills_over() -> None:
    """A session hotter than a worker is served by several, none with more than its bounded share."""
    workers = [*prefills(*[SPEED] * 2), *(SimWorker(f"e{place}", D, speed(50.0), slots=16) for place in range(4))]
    result = play(workers[:2] + workers[3:], conversations(0, 0, hot=40), PolicyName.SESSION)
    assert sum(result.share(f"e{place}") > 0 for place in range(4)) > 1
    assert max(result.busiest[f"e{place}"] for place in range(4)) <= 40 / 4 * 1.25 + 4


def test_fresh_worker_is_not_flooded() -> None:
    """A worker that is slow while it is cold hurts far fewer requests when it grows into its share."""
    load = poisson(30.0, 40.0, plain)

    def cold() -> list[SimWorker]:
        fresh = SimWorker("p9", P, lambda age: SPEED * min(1.0, 0.03 + age / 10), joins_at=10.0)
        return [*prefills(SPEED, SPEED), fresh]

    at_once = play(cold(), load, PolicyName.ROUND_ROBIN)
    slowly = play(cold(), load, PolicyName.ROUND_ROBIN, slow_start=SlowStart(10.0))
    assert slowly.share("p9", 10.0, 12.0) < 0.5 * at_once.share("p9", 10.0, 12.0)
    assert slowly.share("p9", 25.0) == pytest.approx(1 / 3, abs=0.03)
    assert slowly.p99_ttft < 0.7 * at_once.p99_ttft


def test_failing_worker_is_no_black_hole() -> None:
    """A worker that fails at once always looks idle and would draw every request; ejected, it gets a few in all."""
    load = poisson(30.0, 60.0, plain)

    def broken() -> list[SimWorker]:
        workers = prefills(SPEED, SPEED, SPEED)
        workers[0].fails = lambda now: 5.0 <= now < 40.0
        return workers

    never = play(broken(), load, PolicyName.TOKEN_AWARE, rules=NEVER)
    ejecting = play(broken(), load, PolicyName.TOKEN_AWARE)
    assert never.failures > 300
    assert ejecting.failures < 15
    assert never.lost == ejecting.lost == 0
    assert ejecting.share("p0", 0.0, 5.0) > 0.2
    assert ejecting.share("p0", 55.0) > 0.2  # it is back
