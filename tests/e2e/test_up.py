"""`baton up` and its sister commands as a user runs them, on the demo checkpoint."""

import asyncio
import contextlib
import json
import pathlib
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator

import psutil
import pytest

from services.frontend.client import GenerationClient

BATON = str(pathlib.Path(sysconfig.get_path("scripts")) / "baton")
START_S = 90
COMMAND_S = 60

pytestmark = pytest.mark.slow


async def baton(*arguments: str, timeout_s: float = COMMAND_S) -> tuple[int, str, str]:
    """Runs a command to its end: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, BATON, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def running(folder: pathlib.Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A cluster that serves; its output can be read line by line."""
    places = ("--log-folder", str(folder), "--ready-file", str(folder / "ready.json"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, BATON, "up", "--port", "0", *places, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_S):
            await until_line(process, "serving until Ctrl-C")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_line(process: asyncio.subprocess.Process, text: str) -> str:
    """Reads output until a line has the text."""
    assert process.stdout is not None
    seen: list[str] = []
    while line := (await process.stdout.readline()).decode():
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"ended without {text!r}:\n{''.join(seen)}")


async def test_once_answers_and_stops(tmp_path: pathlib.Path) -> None:
    """With --once the answer comes, with the time of every stage over two workers, and the exit code is 0."""
    question = ("--once", "--prompt", "What is the capital of France?")
    code, out, err = await baton("up", "--port", "0", "--log-folder", str(tmp_path), *question, timeout_s=START_S)
    assert code == 0, out + err
    assert "Paris" in out
    for stage in ("queue", "prefill", "handoff", "admission", "decode"):
        assert f"{stage} " in err
    assert "prefill-0 → decode-0" in err


async def test_a_cluster_can_be_asked_drained_and_stopped(tmp_path: pathlib.Path) -> None:
    """Status, health and drain work on what the ready file names, and Ctrl-C leaves no process and no ready file."""
    async with running(tmp_path) as up:
        ready = tmp_path / "ready.json"
        processes = {each["name"]: each for each in json.loads(ready.read_text())["processes"]}
        code, out, _ = await baton("status", "--json", "--directory", processes["kvtransfer"]["address"])
        assert code == 0
        assert {each["worker_id"]: each["state"] for each in json.loads(out)["workers"]} == {
            "prefill-0": "ready",
            "decode-0": "ready",
        }
        decode = processes["decode-0"]["address"]
        assert (await baton("health", decode))[0] == 0
        assert (await baton("drain", decode, "--timeout", "10"))[0] == 0
        children = [psutil.Process(each["pid"]) for each in processes.values()]
        up.send_signal(signal.SIGINT)
        async with asyncio.timeout(COMMAND_S):
            assert await up.wait() == 0
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 30)
        assert (len(gone), alive) == (4, [])
        assert not ready.exists()


async def test_a_worker_that_dies_comes_back(tmp_path: pathlib.Path) -> None:
    """A killed decode worker is reported and started again, and afterwards prompts are answered as before."""
    async with running(tmp_path) as up:
        processes = json.loads((tmp_path / "ready.json").read_text())["processes"]
        addresses = {each["name"]: each for each in processes}
        psutil.Process(addresses["decode-0"]["pid"]).kill()
        async with asyncio.timeout(START_S):
            assert "SIGKILL" in await until_line(up, "restarting")
            while "decode-0" not in await until_line(up, " ready "):
                pass
        async with GenerationClient(addresses["frontend-0"]["address"]) as client, asyncio.timeout(COMMAND_S):
            while not (await client.list_models())[0].decode_workers:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)
        code, out, err = await baton("generate", "--address", addresses["frontend-0"]["address"], "Who are you?")
        assert code == 0, err
        assert out.strip()
