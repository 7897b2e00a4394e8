"""Bearer tokens of a gRPC server, over real sockets: who may call, and how tokens are changed."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.config import ConfigError
from services.common.errors import Unauthenticated
from services.common.rpc.channel import open_channel, rpc_errors
from services.common.rpc.security import ClientSecurity, SecurityFiles, ServerSecurity, new_client_security
from services.common.rpc.security import server_security as asking
from services.common.rpc.tokens import load_tokens
from tests.harness.certificates import HOST, OTHER_TOKEN, TOKEN, Authority, token_file
from tests.harness.rpc import PREFILL, ScriptedPrefill, running_server
from tests.harness.tiers import until


def showing(path: Path, *tokens: str) -> ClientSecurity:
    return new_client_security(SecurityFiles(tokens=token_file(path, *tokens)))


def wanting(path: Path, *tokens: str) -> ServerSecurity:
    return asking(SecurityFiles(tokens=token_file(path, *tokens)))


@contextlib.asynccontextmanager
async def connected(port: int, security: ClientSecurity) -> AsyncIterator[Any]:
    channel = open_channel(f"{HOST}:{port}", security=security)
    try:
        yield channel
    finally:
        await channel.close()


async def call(port: int, security: ClientSecurity, *, metadata: Any = None) -> None:
    async with connected(port, security) as channel:
        with rpc_errors("server"):
            stub = prefill_pb2_grpc.PrefillServiceStub(channel)
            await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10, metadata=metadata)


async def test_a_known_token_opens_the_door(tmp_path: Path) -> None:
    """Whichever line of the server's file it is; what else the call carries as metadata stays."""
    seen: list[Any] = []
    prefill = ScriptedPrefill()

    async def note(request: Any, context: Any) -> prefill_pb2.PrefillResponse:
        seen.append(dict(context.invocation_metadata())["x-mine"])
        return prefill_pb2.PrefillResponse()

    prefill.behaviour = note
    async with running_server(prefill, security=wanting(tmp_path / "server", TOKEN, OTHER_TOKEN)) as running:
        for token in (TOKEN, OTHER_TOKEN):
            await call(running.port, showing(tmp_path / "client", token), metadata=(("x-mine", "1"),))
    assert seen == ["1", "1"]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", f"Bearer {OTHER_TOKEN}"),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN} "),),
        (("authorization", f"Bearer {TOKEN[:-1]}"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {OTHER_TOKEN}")),
    ],
)
async def test_anything_else_is_turned_away_before_it_is_read(tmp_path: Path, metadata: Any) -> None:
    """A missing, wrong, malformed or doubled token answers UNAUTHENTICATED, is counted, and reaches no servicer."""
    prefill = ScriptedPrefill()
    async with running_server(prefill, security=wanting(tmp_path / "server", TOKEN)) as running:
        with pytest.raises(Unauthenticated) as caught:
            await call(running.port, ClientSecurity(), metadata=metadata)
        await until(lambda: running.count(PREFILL, "Prefill", "UNAUTHENTICATED") == 1)
    assert prefill.calls == 0
    assert TOKEN not in caught.value.message


async def test_health_is_open_and_reflection_is_not(tmp_path: Path) -> None:
    """Probes need no token; what services there are is told only to those who may call them."""

    async def reflected(channel: Any) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with rpc_errors("server"):
            answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]), timeout=10)]
        assert answers[0].list_services_response.service

    async with running_server(security=wanting(tmp_path / "server", TOKEN)) as running:
        async with connected(running.port, ClientSecurity()) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            with pytest.raises(Unauthenticated):
                await reflected(channel)
        async with connected(running.port, showing(tmp_path / "client", TOKEN)) as channel:
            await reflected(channel)


async def test_tokens_are_changed_without_a_gap(tmp_path: Path, quick_look: None) -> None:
    """New below old, then swapped, then alone: a client with one open channel is served at every step."""
    server, client = tmp_path / "server", tmp_path / "client"
    async with running_server(security=wanting(server, TOKEN)) as running:
        async with connected(running.port, showing(client, TOKEN)) as channel:
            stub = prefill_pb2_grpc.PrefillServiceStub(channel)
            for path, tokens in [
                (server, (TOKEN, OTHER_TOKEN)),
                (client, (TOKEN, OTHER_TOKEN)),
                (client, (OTHER_TOKEN, TOKEN)),
                (server, (OTHER_TOKEN,)),
            ]:
                token_file(path, *tokens)
                await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)
        with pytest.raises(Unauthenticated):
            await call(running.port, showing(tmp_path / "late", TOKEN))


async def test_a_spoilt_token_file_changes_nothing(tmp_path: Path, quick_look: None) -> None:
    """A file that was emptied neither opens the server to all nor shuts out those who were let in."""
    path = tmp_path / "server"
    security = wanting(path, TOKEN)
    async with running_server(security=security) as running:
        token_file(path)
        await call(running.port, showing(tmp_path / "client", TOKEN))
        with pytest.raises(Unauthenticated):
            await call(running.port, ClientSecurity())
    assert security.stats()["security_reload_failures"] == 1


async def test_a_token_over_tls(tmp_path: Path) -> None:
    """Certificate and token are asked for together; either alone is not enough."""
    authority = Authority(tmp_path / "ca")
    files = authority.issue("server", tokens=token_file(tmp_path / "server", TOKEN))
    async with running_server(security=asking(files, require_client_cert=True)) as running:
        client = authority.issue("client", tokens=token_file(tmp_path / "client", TOKEN))
        await call(running.port, new_client_security(client))
        with pytest.raises(Unauthenticated):
            await call(running.port, new_client_security(authority.issue("client")))


@pytest.mark.parametrize(
    "content", ["", "# nothing\n\n", "short\n", f"{TOKEN} {OTHER_TOKEN}\n", "naïve-token-of-many-chars\n"]
)
def test_a_file_without_proper_tokens_is_refused(tmp_path: Path, content: str) -> None:
    """The message names file and line, never what stands there."""
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_tokens(str(path))
    assert str(path) in str(caught.value)
    assert not any(word in str(caught.value) for word in content.split() if word != "#")


def test_comments_and_blank_lines_are_no_tokens(tmp_path: Path) -> None:
    """What is left are the tokens, in their order."""
    path = tmp_path / "tokens"
    path.write_text(f"# the new one\n  {OTHER_TOKEN}  \n\n{TOKEN}\n")
    assert load_tokens(str(path)) == (OTHER_TOKEN, TOKEN)
