"""Bad requests in a batch, peers that do not fit, and messages that come twice (F16–F18), in virtual time."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.common.sampling import SamplingParams
from services.engine.batch import BatchItem
from services.kvtransfer.client import KvTransferClient
from tests.fault.checks import owns, wrong_with
from tests.fault.clients import Asking, Clients, prompt
from tests.fault.evidence import OK, Part, Record
from tests.fault.scenario import Topology
from tests.fault.simulated_cluster import SimulatedCluster, simulated_cluster
from tests.harness.tiers import until
from tests.harness.virtual_time import VirtualClock, run_virtually

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
GOOD = Asking(sampling=GREEDY, prompt_tokens=48, deadline_s=30.0)
POISON = 2  # no prompt of the harness has it
BOMB = 666  # a seed that nobody else has
NEIGHBOURS = 6

Play = Callable[[SimulatedCluster, Clients], Awaitable[None]]


def simulate(play: Play, topology: Topology | None = None) -> None:
    """Runs on virtual time; afterwards nothing of any request is left."""

    async def main(clock: VirtualClock) -> None:
        async with simulated_cluster(topology or Topology(), clock) as cluster:
            clients = Clients(cluster)
            try:
                await play(cluster, clients)
                await clients.wait(*clients.records)
                await asyncio.sleep(1.0)
                held = {name: owns(await cluster.state(name)) for name in cluster.names()}
            finally:
                await clients.close()
            assert not any(held.values()), held
            assert not cluster.ended()

    run_virtually(main)


def neighbours(clients: Clients) -> list[Record]:
    """Good requests that run beside."""
    return [clients.ask(Part.COMPANION, GOOD) for _ in range(NEIGHBOURS)]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt that is too long": ({"prompt": [5] * 300}, "INVALID_ARGUMENT"),
    "a negative temperature": ({"sampling": dataclasses.replace(GREEDY, temperature=-1.0)}, "INVALID_ARGUMENT"),
    "no room for choices": ({"sampling": dataclasses.replace(GREEDY, n=10_000)}, "INVALID_ARGUMENT"),
    "a token that does not exist": ({"prompt": [5, 6, 10_000]}, "INVALID_ARGUMENT"),
    "no token at all": ({"prompt": []}, "INVALID_ARGUMENT"),
    "NaN logits": ({"prompt": [*prompt(1, 47), POISON]}, "INTERNAL"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_request_in_a_batch_fails_alone(kind: str):
    """F16: it gets its own typed error, and its neighbours get their tokens."""
    fields, status = BAD[kind]

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        for engine in cluster.engines.values():
            engine.poison = POISON
        good = neighbours(clients)
        bad = clients.ask(Part.SUBJECT, dataclasses.replace(GOOD, **fields))
        good += neighbours(clients)
        await clients.wait(bad, *good)
        assert (bad.status, bad.tokens) == (status, {}), bad
        assert [record.status for record in good] == [OK] * len(good)
        assert not any(wrong_with(record) for record in good)

    simulate(play)


@pytest.mark.parametrize("tier", ["prefill", "decode"])
def test_a_request_for_which_the_model_raises_fails_alone(tier: str):
    """F16: after a second worker has found that it raises, it ends with its own error; no worker ends."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        bad = await _with_a_bomb(cluster, clients, tier, is_deadly=False)
        assert (bad.status, bad.error) == ("FAILED_PRECONDITION", "Unservable"), bad

    simulate(play, Topology(prefill=2, decode=2))


@pytest.mark.parametrize("tier", ["prefill", "decode"])
def test_a_request_that_breaks_engines_ends_two_workers_at_most(tier: str):
    """F16: it is not given to a third worker, and what comes after it is served."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        bad = await _with_a_bomb(cluster, clients, tier, is_deadly=True)
        assert (bad.status, bad.error) == ("FAILED_PRECONDITION", "Unservable"), bad
        assert len(cluster.ended()) == 2, cluster.ended()
        for name, _ in cluster.ended():
            await cluster.kill(name)
        cluster.forget_ends()

    simulate(play, Topology(prefill=4, decode=4))


async def _with_a_bomb(cluster: SimulatedCluster, clients: Clients, tier: str, *, is_deadly: bool) -> Record:
    """One request for which the models of a tier raise; those beside it and after it end well."""
    for name, engine in cluster.engines.items():
        engine.bomb = _is_bomb if name.startswith(tier) else None
        engine.is_deadly = is_deadly
    good = [] if is_deadly else neighbours(clients)
    bad = clients.ask(Part.SUBJECT, dataclasses.replace(GOOD, sampling=dataclasses.replace(GREEDY, seed=BOMB)))
    await clients.wait(bad)
    good += neighbours(clients)
    await clients.wait(*good)
    assert [record.status for record in good] == [OK] * len(good), good
    assert not any(wrong_with(record) for record in clients.records)
    return bad


def _is_bomb(item: BatchItem) -> bool:
    return any(sample.sampling.seed == BOMB for sample in item.samples)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(
    "field", [{"model_fingerprint": "another"}, {"num_layers": 3}, {"head_dim": 4}, {"num_kv_heads": 7}], ids=str
)
def test_a_peer_that_does_not_fit_is_never_used(role: str, field: dict[str, Any]):
    """F17: it joins, its pairs are refused, no request goes through one, and none fails."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        cluster.layouts[f"{role}-1"] = field
        await cluster.start(f"{role}-1")
        await cluster.routable()
        for _ in range(4):
            await clients.wait(*neighbours(clients))
        fits = {"prefill-0", "decode-0"}
        # A decode worker that fits no prefill worker may still run whole requests by itself.
        allowed = ({"prefill-0", "decode-0"}, {"decode-0"}, {"decode-1"})
        assert all(set(record.workers) in allowed for record in clients.records), [r.workers for r in clients.records]
        assert any(set(record.workers) == fits for record in clients.records)
        same_model = [record for record in clients.records if record.status == OK]
        assert len(same_model) == len(clients.records)
        assert not any(wrong_with(record) for record in clients.records)

    simulate(play, Topology(prefill=1, decode=1))


def test_an_answer_is_never_continued_by_other_weights():
    """F20: under one name two models are served, as during an upgrade; a begun answer ends rather than change model."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        cluster.layouts["decode-1"] = {"model_fingerprint": "next"}
        await cluster.start("decode-1")
        await cluster.routable()
        # Its prefill worker fits the first decode worker alone.
        records = neighbours(clients)
        await until(lambda: all(record.arrivals for record in records))
        begun = [record for record in records if not record.workers]
        await cluster.kill("decode-0")
        cluster.forget_ends()
        await clients.wait(*records)
        assert begun
        assert {(record.status, record.error) for record in begun} == {("UNAVAILABLE", "PeerUnreachable")}
        assert not any(wrong_with(record) for record in records)

    simulate(play, Topology(prefill=1, decode=1))


def test_block_sizes_may_differ():
    """F17: what the sink converts is no reason to refuse a pair."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        cluster.layouts["decode-0"] = {"block_size": 8}
        await cluster.kill("decode-0")
        await cluster.start("decode-0")
        await cluster.routable()
        cluster.forget_ends()
        records = neighbours(clients)
        await clients.wait(*records)
        assert {record.workers for record in records} == {("prefill-0", "decode-0")}
        assert not any(wrong_with(record) or record.status != OK for record in records)

    simulate(play, Topology(prefill=1, decode=1))


def test_requests_with_one_id_do_not_disturb_each_other():
    """F18: a client that sends a request twice gets it answered twice, and no block is freed twice."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        twice = dataclasses.replace(GOOD, request_id="the-same")
        records = [clients.ask(Part.SUBJECT, twice) for _ in range(8)]
        await clients.wait(*records)
        assert not any(wrong_with(record) or record.status != OK for record in records)

    simulate(play)


def test_a_ticket_given_back_twice_or_late_is_given_back_once():
    """F18: releases of tickets that are unknown or gone are answered and change nothing."""

    async def play(cluster: SimulatedCluster, clients: Clients) -> None:
        records = neighbours(clients)
        client = KvTransferClient(cluster.address("prefill-0"), "prefill-0")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert not (await client.release("f" * 32, fetch_id="", timeout_s=1.0)).was_open
        await clients.wait(*records)
        assert not (await client.release("f" * 32, fetch_id="", timeout_s=1.0)).was_open
        await client.close()
        assert not any(wrong_with(record) or record.status != OK for record in records)

    simulate(play)
