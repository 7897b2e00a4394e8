"""TLS of a gRPC server and its clients, over real sockets: who is let in, and what a change of certificates does."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from baton.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from cryptography import x509

from services.common.config import ConfigError
from services.common.errors import PeerUnreachable
from services.common.rpc.channel import open_channel, rpc_errors
from services.common.rpc.security import (
    ClientSecurity,
    SecurityFiles,
    ServerSecurity,
    new_client_security,
    server_security,
)
from services.common.rpc.tls import load_tls
from tests.harness.certificates import HOST, Authority
from tests.harness.rpc import Context, ScriptedPrefill, WrittenDecode, running_server

PLAIN = ClientSecurity()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@contextlib.asynccontextmanager
async def calling(port: int, security: ClientSecurity) -> AsyncIterator[Any]:
    """A stub of the prefill service over a channel of its own."""
    channel = open_channel(f"{HOST}:{port}", security=security)
    try:
        yield prefill_pb2_grpc.PrefillServiceStub(channel)
    finally:
        await channel.close()


async def call(port: int, security: ClientSecurity) -> None:
    """One call; raises what a caller sees."""
    async with calling(port, security) as stub:
        with rpc_errors("server"):
            await stub.Prefill(prefill_pb2.PrefillRequest(), timeout=10)


def mutual(authority: Authority) -> ServerSecurity:
    return server_security(authority.issue("server"), require_client_cert=True)


async def test_each_side_knows_the_other_by_its_certificate(authority: Authority) -> None:
    """With mutual TLS a client that has a certificate of the same authority is served."""
    async with running_server(security=mutual(authority)) as running:
        await call(running.port, new_client_security(authority.issue("client")))


async def test_a_client_without_a_certificate_is_served_where_none_is_asked_for(authority: Authority) -> None:
    """TLS alone lets in everybody who trusts the server."""
    async with running_server(security=server_security(authority.issue("server"))) as running:
        await call(running.port, new_client_security(SecurityFiles(ca=authority.ca)))


@pytest.mark.parametrize("who", ["plaintext", "no certificate", "foreign certificate", "foreign authority"])
async def test_strangers_are_kept_out(authority: Authority, tmp_path: Path, who: str) -> None:
    """Neither plaintext nor a missing or foreign certificate gets a call through, and a client believes no stranger."""
    other = Authority(tmp_path / "theirs").issue("client")
    files = {
        "no certificate": SecurityFiles(ca=authority.ca),
        "foreign certificate": replace(other, ca=authority.ca),
        "foreign authority": replace(authority.issue("client"), ca=other.ca),
    }
    security = PLAIN if who == "plaintext" else new_client_security(files[who])
    prefill = ScriptedPrefill()
    async with running_server(prefill, security=mutual(authority)) as running:
        with pytest.raises(PeerUnreachable):
            await call(running.port, security)
        assert prefill.calls == 0
        await call(running.port, new_client_security(authority.issue("friend")))


async def test_a_certificate_of_another_host_is_not_believed(authority: Authority) -> None:
    """A client asks for the host it connects to, or for the name that it is told to ask for."""
    files = authority.issue("server", host="baton.internal")
    async with running_server(security=server_security(files)) as running:
        trusting = SecurityFiles(ca=authority.ca)
        with pytest.raises(PeerUnreachable):
            await call(running.port, new_client_security(trusting))
        await call(running.port, new_client_security(trusting, server_name="baton.internal"))


async def test_a_new_certificate_is_taken_over_while_a_stream_goes_on(authority: Authority, quick_look: None) -> None:
    """A connection that is made after the files changed sees the new certificate; a stream that runs goes on."""
    go_on, serials = asyncio.Event(), set[int]()

    async def two_messages(request: Any, context: Context) -> None:
        await context.write(decode_pb2.DecodeResponse())
        await go_on.wait()
        await context.write(decode_pb2.DecodeResponse())

    files = authority.issue("server")
    security = server_security(files)
    trusting = new_client_security(SecurityFiles(ca=authority.ca))
    async with running_server(decode=WrittenDecode(two_messages), security=security) as running:
        channel = open_channel(f"{HOST}:{running.port}", security=trusting)
        stream = decode_pb2_grpc.DecodeServiceStub(channel).Decode(decode_pb2.DecodeRequest())
        await stream.read()
        serials.add(serial_of(await served_certificate(running.port, authority)))
        authority.issue("server")
        serials.add(serial_of(await served_certificate(running.port, authority)))
        await call(running.port, trusting)
        go_on.set()
        assert await stream.read() is not grpc.aio.EOF
        assert await stream.read() is grpc.aio.EOF
        await channel.close()
    assert len(serials) == 2
    assert security.stats() == {"security_reloads": 1, "security_reload_failures": 0}


@pytest.mark.parametrize("damage", ["half a certificate", "the key of another", "no file"])
async def test_wrong_new_files_leave_the_old_certificate(authority: Authority, quick_look: None, damage: str) -> None:
    """A file that is half written, does not fit or is gone changes nothing but a count, until it is mended."""
    files = authority.issue("server")
    security = server_security(files)
    trusting = new_client_security(SecurityFiles(ca=authority.ca))
    async with running_server(security=security) as running:
        before = serial_of(await served_certificate(running.port, authority))
        hurt(files, damage, authority)
        await call(running.port, trusting)
        assert serial_of(await served_certificate(running.port, authority)) == before
        assert security.stats()["security_reload_failures"] == 1
        authority.issue("server")
        assert serial_of(await served_certificate(running.port, authority)) != before


async def test_a_client_takes_its_new_certificate_for_its_next_call(
    authority: Authority, tmp_path: Path, quick_look: None
) -> None:
    """A channel outlives a change of authority: calls after it show and believe the new one, running ones go on."""
    later = Authority(tmp_path / "later")
    go_on = asyncio.Event()

    async def wait(request: Any, context: Context) -> prefill_pb2.PrefillResponse:
        if not request.request_id:
            await go_on.wait()
        return prefill_pb2.PrefillResponse()

    prefill = ScriptedPrefill()
    prefill.behaviour = wait
    server_files, client_files = authority.issue("server"), authority.issue("client")
    security = server_security(server_files, require_client_cert=True)
    async with (
        running_server(prefill, security=security) as running,
        calling(running.port, new_client_security(client_files)) as stub,
    ):
        early = asyncio.ensure_future(stub.Prefill(prefill_pb2.PrefillRequest(), timeout=20))
        await stub.Prefill(prefill_pb2.PrefillRequest(request_id="1"), timeout=10)
        for files in (server_files, client_files):
            move(later.issue("new"), files)
        await stub.Prefill(prefill_pb2.PrefillRequest(request_id="2"), timeout=10)
        with pytest.raises(PeerUnreachable):
            await call(running.port, PLAIN)
        go_on.set()
        await early


def test_files_that_do_not_fit_are_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    """The message names the file and never shows what is in it."""
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(ConfigError, match="not a certificate and its unencrypted key"):
        load_tls(one.cert, other.key, one.ca)
    with pytest.raises(ConfigError, match="holds no certificates"):
        load_tls(one.cert, one.key, one.key)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tls(one.cert, str(tmp_path / "none"), one.ca)
    with pytest.raises(ConfigError, match="can only be required"):
        server_security(SecurityFiles(cert=one.cert, key=one.key), require_client_cert=True)
    assert "PRIVATE" not in repr(load_tls(one.cert, one.key, one.ca))


def hurt(files: SecurityFiles, damage: str, authority: Authority) -> None:
    cert = Path(files.cert)
    if damage == "half a certificate":
        cert.write_bytes(cert.read_bytes()[: cert.stat().st_size // 2])
    elif damage == "the key of another":
        Path(files.key).write_bytes(Path(authority.issue("other").key).read_bytes())
    else:
        cert.unlink()


def move(new: SecurityFiles, to: SecurityFiles) -> None:
    for fresh, old in ((new.cert, to.cert), (new.key, to.key), (new.ca, to.ca)):
        Path(old).write_bytes(Path(fresh).read_bytes())


async def served_certificate(port: int, authority: Authority) -> bytes:
    """The certificate that the server shows to a connection that is made now."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(HOST, port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def serial_of(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number
