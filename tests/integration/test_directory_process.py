"""The directory as a process of its own, and its signals to operators."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator

import pytest

from services.common.types import Tier
from services.kvtransfer.directory.client import DirectoryClient
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.workers import worker_info

WAIT_S = 30.0


@contextlib.asynccontextmanager
async def started(module: str, *flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Runs `python -m module` and gives it with the port that it says it listens on."""
    command = ["-m", module, "--port", "0", "--metrics-port", "0", "--log-format", "json", *flags]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while line := json.loads(await process.stderr.readline()):
                if line["event"] == "directory_listening":
                    break
        yield process, line["port"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("module", ["services.kvtransfer", "services.kvtransfer.directory"])
async def test_it_serves_until_sigterm(module: str):
    """Both ways to start it; a signal ends it with success, and every line of its log is JSON."""
    async with started(module) as (process, port):
        client = DirectoryClient(f"127.0.0.1:{port}")
        await client.register(worker_info("p"))
        await client.close()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            _, log = await process.communicate()
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[-1] == "process_stopped"
    assert "worker_registered" in events


async def test_it_says_what_is_wrong_with_its_settings():
    """One line, no traceback, and an exit code of its own."""
    flags = ["-m", "services.kvtransfer", "--lease-s", "0"]
    process = await asyncio.create_subprocess_exec(sys.executable, *flags, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(WAIT_S):
        _, log = await process.communicate()
    assert process.returncode == 2
    assert log.decode().startswith("baton-kvtransfer: flag --lease-s: lease_s: ")


@pytest.mark.parametrize("leases", [1.0, 1.5], ids=["until a lease ends", "for longer than a lease"])
async def test_a_directory_that_stood_still_drops_nobody(leases: float):
    """Its leases ran out while it could not take renewals: a stopped process must not empty the fleet."""
    lease_s = 1.0
    async with contextlib.AsyncExitStack() as stack:
        process = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=lease_s))
        await process.start()
        stack.push_async_callback(process.stop)
        registration = Registration(f"127.0.0.1:{process.port}", lambda: worker_info("p"))
        registration.start()
        stack.push_async_callback(registration.close)
        assert await registration.wait_registered(WAIT_S)
        registered = time.monotonic()
        client = DirectoryClient(f"127.0.0.1:{process.port}")
        stack.push_async_callback(client.close)
        watch = await stack.enter_async_context(contextlib.aclosing(client.watch()))
        assert len((await anext(watch)).workers) == 1
        # The fault: the whole event loop stands still.
        time.sleep(max(0.0, registered + leases * lease_s - time.monotonic()))  # noqa: ASYNC251
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while True:  # a snapshot may be told twice, but none may lack the worker
                    assert len((await anext(watch)).workers) == 1


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


@contextlib.asynccontextmanager
async def measured(lease_s: float) -> AsyncIterator[tuple[DirectoryClient, int]]:
    """A directory in this process: a client of it, and the port of its metrics."""
    metrics_port = free_port()
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=metrics_port, lease_s=lease_s))
    await process.start()
    client = DirectoryClient(f"127.0.0.1:{process.port}")
    try:
        yield client, metrics_port
    finally:
        await client.close()
        await process.stop()


async def test_metrics_count_what_happens():
    """Joins, renewals, members and refusals, by the exact number."""
    async with measured(lease_s=60.0) as (client, metrics_port):
        await client.register(worker_info("p"))
        await client.register(worker_info("p"))
        await client.register(worker_info("d", Tier.DECODE, head_dim=32))
        page = await asyncio.to_thread(scrape, metrics_port)
        assert 'baton_kvtransfer_members{tier="prefill"} 1.0' in page
        assert 'baton_kvtransfer_members{tier="decode"} 1.0' in page
        assert "baton_kvtransfer_registrations_total 2.0" in page
        assert "baton_kvtransfer_renewals_total 1.0" in page
        assert "baton_kvtransfer_refused_pairs 1.0" in page


async def test_metrics_count_leases_that_ended():
    """By the exact number; who does not renew is no member any more."""
    async with measured(lease_s=0.5) as (client, metrics_port):
        await client.register(worker_info("p"))
        await client.register(worker_info("d", Tier.DECODE))
        async with contextlib.aclosing(client.watch()) as watch, asyncio.timeout(WAIT_S):
            async for membership in watch:
                if not membership.workers:
                    break
        page = await asyncio.to_thread(scrape, metrics_port)
        assert "baton_kvtransfer_expirations_total 2.0" in page
        assert 'baton_kvtransfer_members{tier="prefill"} 0.0' in page


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
        return answer.read().decode()
