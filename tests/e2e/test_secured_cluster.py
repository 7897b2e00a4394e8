"""A whole deployment with mutual TLS and tokens: it answers right, and lets in nobody else on any port."""

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.errors import BatonError, PeerUnreachable, Unauthenticated
from services.common.rpc.channel import open_channel, rpc_errors
from services.common.rpc.security import (
    ClientSecurity,
    SecurityFiles,
    client_security,
    new_client_security,
    use_client_security,
)
from services.common.sampling import SamplingParams
from tests.harness.certificates import OTHER_TOKEN, TOKEN, Authority, token_file
from tests.harness.checkpoints import random_prompt, reference_tokens, tiny_checkpoint
from tests.harness.processes import PATIENT, PATIENT_WORKER, Processes, processes

ROLES = ("kvtransfer", "prefill", "decode", "frontend")


@pytest.fixture(autouse=True)
def clients_as_before() -> Iterator[None]:
    before = client_security()
    yield
    use_client_security(before)


async def refused(address: str, security: ClientSecurity) -> BatonError:
    """The error that a process answers to a call that every process serves."""
    for _ in range(50):
        error = await _refused_once(address, security)
        # gRPC's client says this by itself where the answer came while it was still sending the request.
        if "Internal error from Core" not in str(error):
            return error
    pytest.fail(f"{address} never answered")


async def _refused_once(address: str, security: ClientSecurity) -> BatonError:
    channel = open_channel(address, security=security)
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
    try:
        with rpc_errors(address):
            async for _ in asked:
                pytest.fail(f"{address} let a stranger in")
    except BatonError as error:
        return error
    finally:
        await channel.close()
    pytest.fail(f"{address} answered nothing")


async def baton(files: SecurityFiles, *arguments: str) -> str:
    """What a `baton` command prints."""
    shown = {"CERT": files.cert, "KEY": files.key, "CA": files.ca}
    variables = {f"BATON_CLIENT_TLS_{name}": path for name, path in shown.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from services.cli.main import main; main()",
        *arguments,
        env={**os.environ, **variables, "BATON_CLIENT_TOKEN_FILE": files.tokens},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out
    return out.decode()


async def answers_right(cluster: Processes, checkpoint: Path) -> None:
    """A greedy request runs over both tiers and gives what transformers gives."""
    prompt = random_prompt(40, seed=3)
    answer = await cluster.ask(prompt, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
    assert answer.tokens[0] == reference_tokens(checkpoint, prompt, 16)
    assert not answer.completion.colocated
    assert answer.completion.moves == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_deployment_with_mutual_tls_and_tokens(tmp_path: Path) -> None:
    """Right answers over four secured processes; strangers get in nowhere; certificates change under way."""
    checkpoint = tiny_checkpoint("llama")
    authority = Authority(tmp_path / "ca")
    cluster_tokens, public_tokens = (
        token_file(tmp_path / "cluster", TOKEN),
        token_file(tmp_path / "public", OTHER_TOKEN),
    )
    flags: dict[str, dict[str, str]] = {}
    for role in ROLES:
        files = authority.issue(role)
        named = {"tls-cert": files.cert, "tls-key": files.key, "tls-ca": files.ca, "tls-require-client-cert": ""}
        flags[role] = {**named, "cluster-token-file": cluster_tokens}
    for role in ("prefill", "decode"):
        flags[role] |= PATIENT_WORKER
    flags["frontend"] |= {**PATIENT, "auth-token-file": public_tokens}
    mine = authority.issue("client")
    as_client, as_peer = replace(mine, tokens=public_tokens), replace(mine, tokens=cluster_tokens)
    use_client_security(new_client_security(as_client))
    async with processes(checkpoint, tmp_path / "logs", {"prefill": 1, "decode": 1}, flags) as cluster:
        await answers_right(cluster, checkpoint)
        for name in cluster.by_name:
            address = cluster.address(name)
            assert isinstance(await refused(address, ClientSecurity()), PeerUnreachable)
            without_cert = SecurityFiles(ca=authority.ca, tokens=cluster_tokens)
            assert isinstance(await refused(address, new_client_security(without_cert)), PeerUnreachable)
            assert isinstance(await refused(address, new_client_security(mine)), Unauthenticated)
        # A client of the public API is a stranger to the workers, although its certificate is good.
        assert isinstance(await refused(cluster.address("prefill-0"), new_client_security(as_client)), Unauthenticated)
        for role in ROLES:
            authority.issue(role)
        await answers_right(cluster, checkpoint)
        shown = await baton(as_peer, "status", "--directory", cluster.address("kvtransfer"))
        assert shown.count("ready") == 2
        assert "serving" in await baton(mine, "health", cluster.address("decode-0"))
        size = ("--requests", "1", "--rounds", "1", "--prompt-tokens", "8", "--output-tokens", "2")
        measured = ("--model", str(checkpoint), *size, "--out", str(tmp_path / "found.json"))
        assert "ITL" in await baton(as_client, "bench", "--address", cluster.address("frontend-0"), *measured)
        use_client_security(new_client_security(as_peer))
        await cluster.workers_at_rest()
    for log in (tmp_path / "logs").iterdir():
        text = log.read_text()
        assert TOKEN not in text
        assert OTHER_TOKEN not in text
        assert "PRIVATE KEY" not in text
