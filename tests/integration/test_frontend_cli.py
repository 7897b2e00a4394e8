"""`baton generate` and `baton status` as people run them: a process of its own, against real servers."""

import asyncio
import json
import sys
from dataclasses import dataclass

from services.common.errors import ChannelBroken, QueueFull
from services.common.types import Load, Tier
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.registration import Registration
from services.kvtransfer.directory.server import DirectoryProcess
from tests.harness.scripted_frontend import Cluster, cluster, ids_of
from tests.harness.scripted_workers import Script, ScriptedWorker, eventually, within
from tests.harness.text_checkpoint import text_checkpoint

ANSWER = ids_of("the capital of France is Paris.")
TEXT = "the capital of France is Paris."


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


async def baton(command: str, *arguments: str, stdin: str = "") -> Done:
    """Runs one command to its end."""
    run = f"import typer; from services.cli.{command} import {command}; typer.run({command})"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        run,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ".:protos", "PATH": "", "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
    )
    out, err = await within(process.communicate(stdin.encode()), 90.0)
    return Done(process.returncode or 0, out.decode(), err.decode())


async def generate(running: Cluster, *arguments: str, stdin: str = "") -> Done:
    """`baton generate` against this frontend."""
    return await baton("generate", *arguments, "--address", f"127.0.0.1:{running.process.port}", stdin=stdin)


async def test_answer_on_stdout_and_stages_on_stderr() -> None:
    """The text alone goes to standard output; one line of standard error says where the time went and who did it."""
    async with cluster(Script(ANSWER)) as running:
        done = await generate(running, "hello", "--temperature", "0")
        assert (done.code, done.out) == (0, f"{TEXT}\n")
        lines = done.err.splitlines()
        assert len(lines) == 1
        for part in ("queue", "prefill", "handoff", "admission", "decode", "ttft", "total", "prefill-0 → decode-1"):
            assert part in lines[0]
        chat = running.prefill.requests[0]
        assert list(chat.token_ids[:2]) == [0, 2], "the prompt went through the chat template"


async def test_resumable_answer_is_the_same() -> None:
    """`--resumable` changes nothing in the answer, and leaves it with the frontend for a while."""
    async with cluster(Script(ANSWER)) as running:
        done = await generate(running, "hello", "--temperature", "0", "--resumable")
        assert (done.code, done.out) == (0, f"{TEXT}\n")
        assert running.process.stats()["kept_answers"] == 1


async def test_what_went_another_way_is_shown() -> None:
    """The line on standard error says that decode ran the prompt itself, and how often the request moved."""
    script = Script(ANSWER)
    async with cluster(script, (Tier.PREFILL, Tier.DECODE, Tier.DECODE)) as running:
        broken = Script(ANSWER)
        broken.decode_error, broken.decode_error_at = ChannelBroken("gone"), 2
        running.decode.script = broken
        lines: set[str] = set()
        while not any("moved once" in line for line in lines):
            lines.add((await generate(running, "hello", "--temperature", "0")).err)
        assert any("fell back: migration" in line for line in lines)


async def test_session_reaches_the_router() -> None:
    """What the prompt belongs to is named by a flag."""
    async with cluster(Script(ANSWER), (Tier.DECODE, Tier.DECODE), decode_policy="session") as running:
        done = await generate(running, "hello", "--raw", "--session", "one")
        assert done.code == 0
        value = running.process.registry.get_sample_value
        assert value("baton_frontend_session_home_total", {"tier": "decode"}) == 1


async def test_raw_text_from_stdin() -> None:
    """`--raw -` sends standard input as plain text."""
    async with cluster(Script(ANSWER)) as running:
        done = await generate(running, "-", "--raw", "--max-tokens", "2", "--seed", "7", stdin="hello")
        assert done.code == 0
        request = running.prefill.requests[0]
        assert list(request.token_ids) == [0, *ids_of("hello")]
        assert (request.sampling.max_tokens, request.sampling.seed) == (2, 7)


async def test_json_is_one_object() -> None:
    """`--json` prints one object with every choice, the usage and the stage times."""
    async with cluster(Script(ANSWER, ids_of("hello world"))) as running:
        done = await generate(running, "hello", "--json", "-n", "2", "--temperature", "0")
        answer = json.loads(done.out)
        assert [choice["text"] for choice in answer["choices"]] == [TEXT, "hello world"]
        assert answer["choices"][0]["token_ids"] == ANSWER
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == len(ANSWER) + len(ids_of("hello world"))
        assert answer["stages"]["ttft_ns"] > 0
        assert answer["decode_worker_id"] == "decode-1"


async def test_checkpoint_without_template_gets_plain_text() -> None:
    """Without a chat template the prompt goes as text; with --chat that is an error instead."""
    settings = {"model": str(text_checkpoint(has_template=False)), "served_model_name": "text"}
    async with cluster(Script(ANSWER), **settings) as running:
        done = await generate(running, "hello")
        assert (done.code, done.out) == (0, f"{TEXT}\n")
        assert list(running.prefill.requests[0].token_ids) == [0, *ids_of("hello")]
        refused = await generate(running, "hello", "--chat")
        assert refused.code == 2
        assert refused.err.startswith("InvalidRequest: chat needs a chat template")


async def test_errors_are_one_line() -> None:
    """What goes wrong is said in one line that names the error; bad input exits with 2, the rest with 1."""
    script = Script(ANSWER)
    async with cluster(script) as running:
        bad = await generate(running, "hello", "--top-p", "3")
        assert (bad.code, bad.out) == (2, "")
        assert bad.err.startswith("InvalidRequest: sampling.top_p")
        script.error = QueueFull("no room at all", retry_after_s=0.5)
        script.handoff.clear()  # without a prefill no KV comes, and decode does not speak
        full = await generate(running, "hello", "--json")
        assert full.code == 1
        assert full.err == "QueueFull: no room at all (retry in 0.5 s)\n"
        assert json.loads(full.out)["error"]["class"] == "QueueFull"
    gone = await generate(running, "hello")
    assert gone.code == 1
    assert gone.err.startswith("PeerUnreachable: ")
    assert len(gone.err.splitlines()) == 1


async def test_status_shows_every_worker() -> None:
    """The table and the JSON name each worker, its state and its load; one that died is unreachable."""
    workers = [ScriptedWorker(tier, Script(ANSWER)) for tier in (Tier.PREFILL, Tier.DECODE)]
    directory = DirectoryProcess(DirectorySettings(port=0, metrics_port=0))
    await directory.start()
    registrations: list[Registration] = []
    for worker in workers:
        await worker.start()
        registrations.append(Registration(f"127.0.0.1:{directory.port}", worker.info))
        registrations[-1].start()
    try:
        await eventually(lambda: all(each.is_registered for each in registrations))
        workers[1].report(Load(running_requests=3, free_blocks=16, total_blocks=64, waiting_requests=2, draining=True))
        address = f"127.0.0.1:{directory.port}"
        table = await baton("status", "--directory", address)
        assert table.code == 0
        row = next(line for line in table.out.splitlines() if "decode-0" in line)
        for part in ("draining", "3/8", "75%", workers[1].incarnation, workers[1].address):
            assert part in row
        await workers[0].stop()
        facts = json.loads((await baton("status", "--directory", address, "--json")).out)
        assert [(each["worker_id"], each["state"]) for each in facts["workers"]] == [
            ("decode-0", "draining"),
            ("prefill-0", "unreachable"),
        ]
        assert facts["workers"][0]["load"]["waiting_requests"] == 2
    finally:
        for registration in registrations:
            await registration.close()
        await directory.stop()
        for worker in workers:
            await worker.stop()
    gone = await baton("status", "--directory", address)
    assert gone.code == 1
    assert len(gone.err.splitlines()) == 1
