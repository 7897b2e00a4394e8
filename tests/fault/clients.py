"""The clients of a scenario: they ask frontends and write down, for each request, everything that a client can see."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from services.common.errors import BatonError
from services.common.priority import Priority
from services.common.sampling import SamplingParams
from services.frontend.request import GenerationRequest, Output, TokenPrompt
from tests.fault.evidence import OK, Part, Record
from tests.fault.patient_client import PatientClient
from tests.fault.scenario import Cluster

# Ids that every vocabulary of the harness has, special ones left out.
TOKENS = range(3, 96)
# Few, because a reference of each has to be computed before the clock of a scenario on real processes runs.
PROMPTS = 16
# Read on after the deadline, to see whether the server ends the call by itself.
PATIENCE_S = 3.0


def prompt(number: int, length: int) -> list[int]:
    """The prompt of a request, one of `PROMPTS`; none shares its first block with another."""
    number %= PROMPTS
    return random.Random(number * 1009 + length).choices(TOKENS, k=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a client asks for; a prompt or a request id that is not given is made."""

    sampling: SamplingParams
    prompt_tokens: int
    deadline_s: float
    priority: Priority = Priority.NORMAL
    prompt: list[int] | None = None
    request_id: str = ""


class Clients:
    """Sends requests to the frontends of one cluster, round robin; owns its connections and the running requests."""

    def __init__(self, cluster: Cluster, first_number: int = 0) -> None:
        self._cluster = cluster
        self._number = first_number
        self._frontends = cluster.names("frontend")
        self._clients: dict[str, PatientClient] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self.records: list[Record] = []

    def ask(self, part: Part, asking: Asking, frontend: str = "") -> Record:
        """Starts a request; its record is filled as it goes on."""
        self._number += 1
        frontend = frontend or self._frontends[self._number % len(self._frontends)]
        asked = prompt(self._number, asking.prompt_tokens) if asking.prompt is None else asking.prompt
        started = time.monotonic()
        record = Record(
            request_id=f"{part.value}-{self._number}",
            part=part,
            frontend=frontend,
            started=started,
            deadline=started + asking.deadline_s,
            expected=self._cluster.expected(asked, asking.sampling),
        )
        self.records.append(record)
        task = asyncio.create_task(self._run(record, asked, asking), name=record.request_id)
        self._running[record.request_id] = task
        task.add_done_callback(lambda _: self._running.pop(record.request_id, None))
        return record

    def withdraw(self, record: Record) -> None:
        """The client cancels a request."""
        record.is_withdrawn = True
        if record.request_id in self._running:
            self._running[record.request_id].cancel()

    async def wait(self, *records: Record) -> None:
        """Waits until requests have ended; bounded by their deadlines."""
        tasks = [self._running[record.request_id] for record in records if record.request_id in self._running]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends what still runs and frees the connections."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def _run(self, record: Record, asked: list[int], asking: Asking) -> None:
        request = GenerationRequest(
            request_id=asking.request_id or record.request_id,
            prompt=TokenPrompt(tuple(asked)),
            sampling=asking.sampling,
            deadline=record.deadline,
            priority=asking.priority,
        )
        with _noted(record):
            # The server knows the deadline and has to end the call; where it does not, this shows.
            async with asyncio.timeout_at(record.deadline + PATIENCE_S):
                async with contextlib.aclosing(self._client(record.frontend).generate(request)) as outputs:
                    async for output in outputs:
                        _note(record, output)

    def _client(self, frontend: str) -> PatientClient:
        if frontend not in self._clients:
            self._clients[frontend] = PatientClient(self._cluster.address(frontend))
        return self._clients[frontend]


@contextlib.contextmanager
def _noted(record: Record) -> Iterator[None]:
    """Writes down how a request ends."""
    try:
        yield
        record.status = OK if record.workers else "UNKNOWN"
    except asyncio.CancelledError:
        record.status, record.error, record.ended = "CANCELLED", "withdrawn by the client", time.monotonic()
        raise
    except TimeoutError:
        return  # never ended: `ended` stays None
    except BatonError as error:
        record.status, record.error, record.message = error.code.name, type(error).__name__, error.message
        record.retry_after_s = error.retry_after_s
    except Exception as error:  # noqa: BLE001 - it is a finding, and the check says so
        record.status, record.error, record.message = "UNKNOWN", type(error).__name__, str(error)
    record.ended = time.monotonic()


def _note(record: Record, output: Output) -> None:
    for delta in output.deltas:
        tokens = record.tokens.setdefault(delta.choice, [])
        for token in delta.tokens:
            if token.index != len(tokens):
                record.gap = record.gap or f"token {token.index} of choice {delta.choice} came after {len(tokens)}"
            tokens.append(token.id)
    if output.deltas:
        record.arrivals.append(time.monotonic())
    if output.completion is not None:
        completion = output.completion
        record.moves = completion.moves
        record.workers = tuple(
            dict.fromkeys(name for name in (completion.prefill_worker_id, completion.decode_worker_id) if name)
        )
