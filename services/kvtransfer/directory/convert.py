"""Translates between `kv_directory.proto` and the plain types, and checks what workers say about themselves."""

from baton.v1 import kv_directory_pb2 as pb

from services.common.convert import KNOWN_TIERS, worker_from_proto, worker_to_proto
from services.common.errors import FieldViolation, InvalidRequest
from services.common.ports import split_address
from services.common.types import Membership, RefusedPair, WorkerInfo

# A member's description is sent to every watcher, so it must stay small.
_MAX_BYTES = {
    "worker.worker_id": 128,
    "worker.incarnation": 64,
    "worker.address": 256,
    "worker.model": 256,
    "worker.version": 64,
    "worker.layout.model_fingerprint": 128,
    "worker.layout.dtype": 16,
}
_MAX_TRANSPORTS = 8
_MAX_TRANSPORT_BYTES = 16


def registered_worker(request: pb.RegisterRequest) -> WorkerInfo:
    """The worker that wants to register.

    Raises:
        InvalidRequest: names every field that is missing, too long or makes no sense.
    """
    if not request.HasField("worker"):
        raise InvalidRequest(FieldViolation("worker", "must be set"))
    worker = worker_from_proto(request.worker)
    violations = [*_text_violations(worker), *_number_violations(worker)]
    if violations:
        raise InvalidRequest(violations)
    return worker


def register_request(worker: WorkerInfo) -> pb.RegisterRequest:
    """Asks to join or renew."""
    return pb.RegisterRequest(worker=worker_to_proto(worker))


def membership_from_proto(message: pb.WatchResponse) -> Membership:
    """A snapshot of everybody; workers of a kind that only a newer version knows are left out."""
    known = [worker for worker in message.workers if worker.tier in KNOWN_TIERS]
    return Membership(
        revision=message.revision,
        workers=tuple(worker_from_proto(worker, f"workers[{i}]") for i, worker in enumerate(known)),
        refused_pairs=tuple(refused_from_proto(pair) for pair in message.refused_pairs),
        expired=tuple(message.expired_incarnations),
    )


def membership_to_proto(membership: Membership) -> pb.WatchResponse:
    """A snapshot of everybody."""
    return pb.WatchResponse(
        revision=membership.revision,
        workers=[worker_to_proto(worker) for worker in membership.workers],
        refused_pairs=[refused_to_proto(pair) for pair in membership.refused_pairs],
        expired_incarnations=membership.expired,
    )


def refused_from_proto(message: pb.RefusedPair) -> RefusedPair:
    """Two workers that cannot work together."""
    return RefusedPair(
        prefill_worker_id=message.prefill_worker_id,
        decode_worker_id=message.decode_worker_id,
        reason=message.reason,
    )


def refused_to_proto(pair: RefusedPair) -> pb.RefusedPair:
    """Two workers that cannot work together."""
    return pb.RefusedPair(
        prefill_worker_id=pair.prefill_worker_id, decode_worker_id=pair.decode_worker_id, reason=pair.reason
    )


def _text_violations(worker: WorkerInfo) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    for path, limit in _MAX_BYTES.items():
        value: object = worker.layout if path.startswith("worker.layout.") else worker
        text = str(getattr(value, path.rpartition(".")[2]))
        if len(text.encode()) > limit:
            found.append(FieldViolation(path, f"is {len(text.encode())} bytes long, may be {limit}"))
    transports = worker.layout.transports
    if len(transports) > _MAX_TRANSPORTS or any(len(name.encode()) > _MAX_TRANSPORT_BYTES for name in transports):
        found.append(FieldViolation("worker.layout.transports", f"may be {_MAX_TRANSPORTS} short names"))
    try:
        split_address(worker.address)
    except ValueError:
        found.append(FieldViolation("worker.address", "must be host:port"))
    return found


def _number_violations(worker: WorkerInfo) -> list[FieldViolation]:
    layout = worker.layout
    numbers = {
        "worker.layout.num_layers": layout.num_layers,
        "worker.layout.num_kv_heads": layout.num_kv_heads,
        "worker.layout.head_dim": layout.head_dim,
        "worker.layout.block_size": layout.block_size,
        "worker.layout.tensor_parallel": layout.tensor_parallel,
        "worker.max_model_len": worker.max_model_len,
        "worker.max_num_seqs": worker.max_num_seqs,
        "worker.total_blocks": worker.total_blocks,
    }
    return [FieldViolation(path, f"is {value}, must be 1 or more") for path, value in numbers.items() if value < 1]
