"""The command line against servers whose answers are hostile: an exit code, in time, and no traceback."""

import os
import traceback
from collections.abc import Callable

import pytest
from baton.v1 import generation_pb2, kv_directory_pb2, types_pb2, worker_pb2
from grpc_health.v1 import health_pb2

from services.cli.drain import drain
from services.cli.generate import generate
from services.cli.health import health
from services.cli.role import role
from services.cli.status import status
from services.common.convert import load_to_proto, worker_to_proto
from services.common.types import Load, Tier
from tests.harness.fuzz.rogue_server import RogueServer
from tests.harness.workers import worker_info

SEED = int(os.environ.get("BATON_TEST_FUZZ_SEED", "1"))
CALLS = int(os.environ.get("BATON_TEST_FUZZ_CALLS", "600"))
QUICK_CALLS = 60
SHARE = 0.7
TIMEOUT_S = 2.0

WATCH = "/baton.v1.KvDirectoryService/Watch"
DESCRIBE = "/baton.v1.WorkerService/Describe"
GENERATE = "/baton.v1.GenerationService/Generate"
LOAD = Load(total_blocks=8, free_blocks=3)


def answers() -> dict[str, list[object]]:
    """What good servers say."""
    worker = worker_to_proto(worker_info("p"))
    pair = kv_directory_pb2.RefusedPair(prefill_worker_id="p", decode_worker_id="d", reason="[/] head_dim differs")
    delta = generation_pb2.ChoiceDelta(text="Paris", tokens=[{"id": 5}], finish_reason=types_pb2.FINISH_REASON_LENGTH)
    completion = generation_pb2.Completion(prefill_worker_id="p", decode_worker_id="d")
    item = worker_pb2.CheckItem(name="channel [p]", latency_ns=10**6, error="ChannelBroken", message="[/x] is gone")
    return {
        WATCH: [kv_directory_pb2.WatchResponse(revision=1, workers=[worker, worker], refused_pairs=[pair])],
        DESCRIBE: [worker_pb2.DescribeResponse(worker=worker, load=load_to_proto(LOAD))],
        "/baton.v1.WorkerService/Check": [worker_pb2.CheckResponse(items=[item, item])],
        "/baton.v1.WorkerService/Drain": [worker_pb2.DrainResponse(remaining_requests=1)],
        "/baton.v1.WorkerService/SwitchRole": [worker_pb2.SwitchRoleResponse(worker=worker)],
        "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckResponse(status=1)],
        GENERATE: [
            generation_pb2.GenerateResponse(request_id="r", deltas=[delta]),
            generation_pb2.GenerateResponse(request_id="r", completion=completion),
        ],
    }


def commands(at: str) -> list[Callable[[], None]]:
    """Every command that talks to a server, as it is typed."""
    return [
        lambda: status(at, timeout=TIMEOUT_S),
        lambda: status(at, timeout=TIMEOUT_S, as_json=True),
        lambda: health(at, TIMEOUT_S),
        lambda: health(at, TIMEOUT_S, deep=True),
        lambda: drain(at, 0.0),
        lambda: role(at, Tier.DECODE, TIMEOUT_S),
        lambda: generate("hi", at, deadline=TIMEOUT_S, max_tokens=1),
        lambda: generate("hi", at, deadline=TIMEOUT_S, max_tokens=1, as_json=True),
        lambda: generate("hi", at, deadline=TIMEOUT_S, max_tokens=1, n=2),
    ]


def _do_no_harm(count: int, seed: int) -> None:
    findings: list[str] = []
    codes: set[object] = set()
    good = answers()
    with RogueServer(seed, SHARE, good, frozenset({WATCH, GENERATE})) as server:
        good[WATCH][0].workers[0].address = server.address  # type: ignore[attr-defined]
        good[WATCH][0].workers[1].address = server.address  # type: ignore[attr-defined]
        tried = commands(server.address)
        for number in range(count):
            try:
                tried[number % len(tried)]()
                codes.add(0)
            except SystemExit as ended:
                codes.add(ended.code)
            except Exception:  # noqa: BLE001 - what people would see as a traceback
                findings.append(f"command {number % len(tried)}:\n{traceback.format_exc()}")
    assert not findings, f"seed {seed}: {len(findings)}\n" + "\n".join(findings[:3])
    assert codes <= {0, 1, 2}
    assert {0, 1} <= codes


@pytest.mark.usefixtures("capsys")
def test_hostile_answers_end_no_command_with_a_traceback() -> None:
    """A few calls of each command, two answers in three hostile."""
    _do_no_harm(QUICK_CALLS, SEED)


@pytest.mark.slow
@pytest.mark.timeout(max(300, CALLS))
@pytest.mark.usefixtures("capsys")
def test_many_hostile_answers_end_no_command_with_a_traceback() -> None:
    """As the short run, over many more."""
    _do_no_harm(CALLS, SEED + 100)
