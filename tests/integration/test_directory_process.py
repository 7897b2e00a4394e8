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


async def test_a_directory_that_stood_still_drops_nobody():
    """Its leases ran out while it could not take renewals: a stopped process must not empty the fleet."""
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=0, lease_s=2.0))
    await process.start()
    registration = Registration(f"127.0.0.1:{process.port}", lambda: worker_info("p"))
    registration.start()
    client = DirectoryClient(f"127.0.0.1:{process.port}")
    try:
        assert await registration.wait_registered(WAIT_S)
        async with contextlib.aclosing(client.watch()) as watch:
            assert len((await anext(watch)).workers) == 1
            # The fault: the whole event loop stands still for longer than a lease.
            time.sleep(3.0)  # noqa: ASYNC251
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while True:  # a snapshot may be told twice, but none may lack the worker
                        assert len((await anext(watch)).workers) == 1
    finally:
        await client.close()
        await registration.close()
        await process.stop()


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


async def test_metrics_count_what_happens():
    """Joins, renewals, expirations, members and refusals, by the exact number."""
    metrics_port = free_port()
    process = DirectoryProcess(DirectorySettings(port=0, metrics_port=metrics_port, lease_s=1.0))
    await process.start()
    client = DirectoryClient(f"127.0.0.1:{process.port}")
    try:
        await client.register(worker_info("p"))
        await client.register(worker_info("p"))
        await client.register(worker_info("d", Tier.DECODE, head_dim=32))
        page = await asyncio.to_thread(scrape, metrics_port)
        assert 'baton_kvtransfer_members{tier="prefill"} 1.0' in page
        assert 'baton_kvtransfer_members{tier="decode"} 1.0' in page
        assert "baton_kvtransfer_registrations_total 2.0" in page
        assert "baton_kvtransfer_renewals_total 1.0" in page
        assert "baton_kvtransfer_refused_pairs 1.0" in page
        async with contextlib.aclosing(client.watch()) as watch, asyncio.timeout(WAIT_S):
            async for membership in watch:
                if not membership.workers:
                    break
        page = await asyncio.to_thread(scrape, metrics_port)
        assert "baton_kvtransfer_expirations_total 2.0" in page
        assert 'baton_kvtransfer_members{tier="prefill"} 0.0' in page
    finally:
        await client.close()
        await process.stop()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()
