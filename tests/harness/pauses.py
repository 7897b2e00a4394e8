"""Named points at which workers can be made to stand still, reached by wrapping the engine and the transport.

    CHUNK   before a step that computes a prompt at position `at` or later
    STEP    before a step that samples the token of index `at` or later
    SEND    before message number `at` of a channel or a later one leaves (0 is the probe, or the sink's proof)
    JOIN    before a side of a new channel joins the other one: nothing of it is known
    MEET    before it reads where the other one is: that one can know where it is itself

Production code knows nothing of it: `PausedEngine` and `paused_transports` stand in for what the worker would use.
"""

import dataclasses
import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from torch import Tensor

from services.common.errors import ChannelBroken
from services.engine.batch import BatchItem, ItemResult
from services.kvtransfer.rendezvous import Keys
from services.kvtransfer.transport.base import Meeting, OpenTransport, Transport, Transports

FOLDER_VARIABLE = "BATON_TEST_PAUSES"
# A test that forgot to go on must not leave a process that stands still for ever.
LONGEST_S = 60.0
_LOOK_AGAIN_S = 0.005


class Point(enum.Enum):
    """Where a worker can stand still."""

    CHUNK = "chunk"
    STEP = "step"
    SEND = "send"
    JOIN = "join"
    MEET = "meet"


@dataclass(frozen=True, slots=True)
class Pause:
    """Every worker of a tier stands still at a point, from place `at` on."""

    tier: str
    point: Point
    at: int = 0


class Gate(Protocol):
    """Where a worker's threads ask whether to go on."""

    def pass_by(self, point: Point, place: int) -> None:
        """Blocks the calling thread while a pause says so."""
        ...


class FileGate:
    """A gate that the test opens and closes from another process, by files in a folder.

    `TIER.POINT` holds the place from which on workers of the tier stand still; `WORKER.paused` says that one does.
    """

    def __init__(self, folder: Path, tier: str, worker_id: str) -> None:
        self._folder = folder
        self._tier = tier
        self._mark = folder / f"{worker_id}.paused"

    def pass_by(self, point: Point, place: int) -> None:
        order = self._folder / f"{self._tier}.{point.value}"
        until = monotonic() + LONGEST_S
        try:
            while _at(order) <= place and monotonic() < until:
                self._mark.touch()
                sleep(_LOOK_AGAIN_S)
        finally:
            self._mark.unlink(missing_ok=True)


class PauseFolder:
    """The test's side of the file gates of all workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def pause(self, pause: Pause) -> None:
        """Closes the gates."""
        fresh = self.folder / "fresh"
        fresh.write_text(str(pause.at))
        os.replace(fresh, self.folder / f"{pause.tier}.{pause.point.value}")

    def resume(self) -> None:
        """Opens all gates."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def paused(self) -> set[str]:
        """Workers that stand still."""
        return {path.stem for path in self.folder.glob("*.paused")}


class PausedEngine:
    """An engine that asks a gate before each step; everything else is the engine's."""

    def __init__(self, engine: Any, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """As the engine's, later."""
        ask(self._gate, items)
        return self._engine.step(items)


def ask(gate: Gate, items: Sequence[BatchItem]) -> None:
    """Passes the gate for what a step is going to compute."""
    chunks = [item.start for item in items if len(item.token_ids) > 1]
    if chunks:
        gate.pass_by(Point.CHUNK, max(chunks))
    indices = [sample.index for item in items for sample in item.samples]
    if indices:
        gate.pass_by(Point.STEP, max(indices))


class PausedTransport:
    """A transport that asks a gate before each send; everything else is the transport's."""

    def __init__(self, inner: Transport, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._sent = 0
        self._is_aborted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, tensor: Tensor, timeout_s: float) -> None:
        """As the transport's, later."""
        self._gate.pass_by(Point.SEND, self._sent)
        self._sent += 1
        if self._is_aborted:
            raise ChannelBroken("the channel was closed while the test held it")
        self._inner.send(tensor, timeout_s)

    def abort(self) -> None:
        """As the transport's."""
        self._is_aborted = True
        self._inner.abort()


class PausedKeys:
    """Keys of a channel that ask a gate before what the other side has set is read. Thread: the channel's."""

    def __init__(self, keys: Keys, gate: Gate) -> None:
        self._keys = keys
        self._gate = gate
        self._own: set[str] = set()

    def set(self, key: str, value: bytes, timeout_s: float) -> None:
        """As the keys'."""
        self._own.add(key)
        self._keys.set(key, value, timeout_s)

    def get(self, key: str, timeout_s: float) -> bytes:
        """As the keys', later."""
        if key not in self._own:
            self._gate.pass_by(Point.MEET, 0)
        return self._keys.get(key, timeout_s)


def paused_transports(transports: Transports, gate: Gate) -> Transports:
    """The same transports, each asking the gate while it joins the other side and before it sends."""
    return {name: _paused(opening, gate) for name, opening in transports.items()}


def _paused(opening: OpenTransport, gate: Gate) -> OpenTransport:
    def build(meeting: Meeting, timeout_s: float) -> Any:
        gate.pass_by(Point.JOIN, 0)
        meeting = dataclasses.replace(meeting, keys=PausedKeys(meeting.keys, gate))
        return PausedTransport(opening(meeting, timeout_s), gate)

    return build


def _at(order: Path) -> float:
    """The place that a pause begins at; infinite where there is none."""
    try:
        return int(order.read_text())
    except FileNotFoundError:
        return float("inf")
