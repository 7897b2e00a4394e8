"""Good requests for the RPCs of a deployment: what hostile ones are made of."""

import random
from typing import Any

from baton.v1 import decode_pb2, generation_pb2, kv_directory_pb2, kv_transfer_pb2, prefill_pb2, types_pb2, worker_pb2

from services.common.convert import worker_to_proto
from services.common.types import WorkerInfo
from tests.harness.fuzz.campaign import Seeds
from tests.harness.fuzz.values import Harvest

VOCAB = 97


def seeds(prefill: WorkerInfo, decode: WorkerInfo, harvest: Harvest) -> Seeds:
    """Makers of good requests, by method name; tickets and channels are drawn from few, so that calls meet."""

    def known(rng: random.Random, name: str, otherwise: Any) -> Any:
        found = harvest.pick(rng, name)
        return otherwise if found is None else found

    def decode_request(rng: random.Random) -> decode_pb2.DecodeRequest:
        ids = _ids(rng)
        request = decode_pb2.DecodeRequest(
            request_id=ids["request_id"], token_ids=_prompt(rng), sampling=_sampling(rng)
        )
        match rng.randrange(3):
            case 0:
                source = {name: getattr(prefill, name) for name in ("worker_id", "incarnation", "address")}
                request.handoff.CopyFrom(decode_pb2.Handoff(ticket_id=ids["ticket_id"], **source))
            case 1:
                request.emitted.add(choice_index=0, token_ids=_prompt(rng)[:5])
            case _:
                pass
        if rng.random() < 0.3:
            request.watch_id, request.watch_key = f"w{rng.randrange(9)}", rng.randrange(9)
        return request

    return {
        "Generate": _generate,
        "Tokenize": lambda rng: generation_pb2.TokenizeRequest(text="hello world"),
        "Detokenize": lambda rng: generation_pb2.DetokenizeRequest(token_ids=_prompt(rng)),
        "Prefill": lambda rng: prefill_pb2.PrefillRequest(**_ids(rng), token_ids=_prompt(rng), sampling=_sampling(rng)),
        "Decode": decode_request,
        "WatchTokens": lambda rng: decode_pb2.WatchTokensRequest(watch_id=f"w{rng.randrange(9)}"),
        "WatchLoad": lambda rng: worker_pb2.WatchLoadRequest(interval_ms=rng.choice((0, 10, 50))),
        "Register": lambda rng: kv_directory_pb2.RegisterRequest(worker=_rogue(rng, rng.choice((prefill, decode)))),
        "Deregister": lambda rng: kv_directory_pb2.DeregisterRequest(
            worker_id=f"rogue-{rng.randrange(8)}", incarnation=f"i{rng.randrange(4)}"
        ),
        "OpenChannel": lambda rng: kv_transfer_pb2.OpenChannelRequest(
            sink=_rogue(rng, decode), source_incarnation=prefill.incarnation, transport="gloo"
        ),
        "AwaitTicket": lambda rng: kv_transfer_pb2.AwaitTicketRequest(**_ids(rng)),
        "Rendezvous": lambda rng: kv_transfer_pb2.RendezvousRequest(
            channel_id=known(rng, "channel_id", "c"),
            epoch=known(rng, "epoch", 1),
            secret=known(rng, "secret", b"s"),
            key=rng.choice(("0", "1", "0/0", "0/1", "rank_0", "rank_1", "x")),
            value=rng.choice((None, b"", b"v", rng.randbytes(200))),
        ),
        "Fetch": lambda rng: kv_transfer_pb2.FetchRequest(
            **_ids(rng),
            fetch_id=f"f{rng.randrange(9)}",
            channel_id=known(rng, "channel_id", "c"),
            epoch=known(rng, "epoch", 1),
            start_token=rng.choice((0, 0, 3)),
        ),
        "Renew": lambda rng: kv_transfer_pb2.RenewRequest(ticket_id=_ids(rng)["ticket_id"]),
        "Release": lambda rng: kv_transfer_pb2.ReleaseRequest(
            ticket_id=_ids(rng)["ticket_id"], fetch_id=f"f{rng.randrange(9)}"
        ),
    }


def _rogue(rng: random.Random, known: WorkerInfo) -> types_pb2.Worker:
    worker = worker_to_proto(known)
    worker.worker_id, worker.incarnation = f"rogue-{rng.randrange(8)}", f"i{rng.randrange(4)}"
    worker.tier = rng.choice((types_pb2.TIER_PREFILL, types_pb2.TIER_DECODE, types_pb2.TIER_COLOCATED))
    return worker


def _ids(rng: random.Random) -> dict[str, str]:
    """A ticket, and the request that it belongs to."""
    number = rng.randrange(40)
    return {"request_id": f"r{number}", "ticket_id": f"t{number}"}


def _prompt(rng: random.Random) -> list[int]:
    return rng.choices(range(VOCAB), k=rng.choice((1, 4, 9, 33, 80)))


def _sampling(rng: random.Random) -> types_pb2.SamplingParams:
    params = types_pb2.SamplingParams(
        temperature=rng.choice((0.0, 1.0)), seed=rng.randrange(99), max_tokens=rng.choice((1, 6, 40))
    )
    if rng.random() < 0.3:
        params.n = rng.choice((2, 3, 16))
    return params


def _generate(rng: random.Random) -> generation_pb2.GenerateRequest:
    request = generation_pb2.GenerateRequest(sampling=_sampling(rng))
    match rng.randrange(3):
        case 0:
            request.text = "hello world"
        case 1:
            request.chat.messages.add(role="user", content="hello")
        case _:
            request.tokens.token_ids.extend(_prompt(rng))
    return request
