"""A peer in a process of its own, as a target: asked in turn with others, and stopped while it is not.

Stopped by signal, because threads that spin while they wait would take the cores from whoever is asked.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from benchmarks.load import WRONG_LENGTH, Run, Timing
from benchmarks.peers.catalog import PEERS, Side, environment, python_of
from benchmarks.peers.install import check_installed, exported
from benchmarks.plan import Plan
from services.common import leash
from services.common.config import ConfigError
from services.common.types import StageTimes, Usage

_END_S = 10.0
_LINE_BYTES = 2**26  # of an order: every prompt of a run


class PeerProcess:
    """A started peer; see `running_peer`."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, timeout_s: float) -> None:
        self._process = process
        self._name = name
        self._timeout_s = timeout_s
        self.facts: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """Of its process, which leads a session of its own."""
        return self._process.pid

    def kill(self) -> None:
        """Ends it and whatever it started, at once."""
        self._signal(signal.SIGKILL)

    async def ready(self, timeout_s: float) -> None:
        """Waits until it is loaded.

        Raises:
            ConfigError: it ended, or takes too long.
        """
        self.facts = (await self._line(timeout_s))["ready"]
        self._signal(signal.SIGSTOP)

    async def run(self, plan: Plan, prompts: Sequence[Sequence[int]], on_end: Callable[[], None]) -> Run:
        """Sends everything and returns once every request has ended.

        Raises:
            ConfigError: the peer died or hangs.
        """
        rows = [
            [each.arrival_s, prompt, each.output_tokens] for each, prompt in zip(plan.requests, prompts, strict=True)
        ]
        self._signal(signal.SIGCONT)
        try:
            await self._send({"requests": rows, "concurrency": plan.concurrency})
            run = Run()
            while "ended" not in (line := await self._line(self._timeout_s)):
                self._note(run, plan, line)
                on_end()
            run.ended = line["ended"]
        finally:
            self._signal(signal.SIGSTOP)
        return run

    async def close(self) -> None:
        """Ends the process and whatever it started."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def _note(self, run: Run, plan: Plan, line: dict[str, Any]) -> None:
        planned = plan.requests[line["request"]]
        if len(line["tokens"]) != planned.output_tokens:
            run.errors[WRONG_LENGTH] += 1
            return
        usage = Usage(prompt_tokens=planned.prompt_tokens, completion_tokens=planned.output_tokens)
        # A request that had to wait for its turn was sent when it came, as far as its user is concerned.
        sent = planned.arrival_s if plan.concurrency is None else line["sent"]
        run.timings.append(Timing(sent, tuple(line["tokens"]), StageTimes(), usage, line["sent"] - sent))

    async def _send(self, order: dict[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is None:
            raise ConfigError(f"{self._name} takes no orders")
        try:
            async with asyncio.timeout(self._timeout_s):
                stdin.write(json.dumps(order).encode() + b"\n")
                await stdin.drain()
        except (OSError, TimeoutError) as error:
            raise ConfigError(f"{self._name} takes no orders any more; its log says why") from error

    async def _line(self, timeout_s: float) -> dict[str, Any]:
        """The next answer; what a peer prints while it is imported is passed over."""
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self._process.stdout.readline() if self._process.stdout else b"":
                    if line.startswith(b"{"):
                        return json.loads(line)
        except TimeoutError:
            raise ConfigError(f"{self._name} said nothing for {timeout_s:g} s; its log may say why") from None
        raise ConfigError(f"{self._name} ended early with {await self._process.wait()}; its log may say why")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextlib.asynccontextmanager
async def running_peer(
    side: Side, checkpoint: pathlib.Path, folder: pathlib.Path, longest: int, timeouts_s: tuple[float, float]
) -> AsyncGenerator[PeerProcess]:
    """Exports the checkpoint where needed, starts a peer over all cores, and ends it.

    Args:
        side: which peer, and its quantization.
        checkpoint: directory of the model.
        folder: of the peers' environments, exported models and logs.
        longest: tokens of the longest request.
        timeouts_s: for its start, and for a request.

    Raises:
        ConfigError: it is not installed, or did not become ready.
    """
    peer = PEERS[side.engine]
    check_installed(peer, folder)
    cores = sorted(os.sched_getaffinity(0))
    options = {
        "model": str(await asyncio.to_thread(exported, side, peer, checkpoint, folder)),
        "is_int8": side.is_int8,
        "threads": len(cores),
        "max_model_len": -(-longest // 256) * 256,
        "step_tokens": 2048,
    }
    log = folder / "logs" / f"{side.name.replace(':', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            # Leashed: a stopped process would outlive this one, whose end it could not see.
            sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), "",
            str(python_of(peer, folder)), "-m", peer.module, json.dumps(options),
            env=environment(peer, folder, cores), start_new_session=True, limit=_LINE_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    running = PeerProcess(process, f"{side.name} (log: {log})", timeouts_s[1])
    try:
        await running.ready(timeouts_s[0])
        yield running
    finally:
        await running.close()
