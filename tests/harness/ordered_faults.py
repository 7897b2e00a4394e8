"""Faults of KV messages that a test orders while workers run, by memory or, from another process, by a file."""

import dataclasses
import json
import os
import random
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.harness.faulty_transport import HURTS, Fault, FaultPlan

_SUFFIX = ".hurt"


@dataclass(frozen=True, slots=True, kw_only=True)
class HurtOrder:
    """One of `kinds` happens to a `share` of the messages, at most `most` times in each process.

    Only messages that `worker` sends, or everybody where it names nobody.
    """

    share: float = 1.0
    kinds: tuple[Fault, ...] = HURTS
    most: int | None = None
    worker: str = ""
    seed: int = 0


UNHURT = HurtOrder(share=0.0)


class OrderedFaults(FaultPlan):
    """What one worker does to its messages, the probes of its channels left out; `num_hurt` says how often it did.

    Thread: shared by the channels of a process.
    """

    def __init__(self, worker_id: str) -> None:
        super().__init__()
        self.num_hurt = 0
        self._worker_id = worker_id
        self._lock = threading.RLock()
        self._orders = 0
        self.obey(UNHURT)

    def obey(self, order: HurtOrder) -> None:
        """From now on this order holds, and no earlier one."""
        self._orders += 1
        self._order = order
        self._left = float("inf") if order.most is None else order.most
        self._chance = random.Random(f"{order.seed} {self._worker_id} {self._orders}")

    def take(self, position: int) -> Fault | None:
        """The fault for this message, if any."""
        with self._lock:
            order = self._order
            if position == 0 or order.worker not in ("", self._worker_id):
                return None
            if self._left <= 0 or self._chance.random() >= order.share:
                return None
            self._left -= 1
            self.num_hurt += 1
            return self._chance.choice(order.kinds)


class FaultsByFile(OrderedFaults):
    """As `OrderedFaults`, as the file beside a folder says; says in another one how often it did."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        super().__init__(worker_id)
        self._path, self._done = _order_of(folder), _done_of(folder, worker_id)
        self._text = ""

    def take(self, position: int) -> Fault | None:
        """The fault for this message, if any."""
        with self._lock:
            text = self._path.read_text() if self._path.exists() else ""
            if text != self._text:
                self._text = text
                self.obey(_order(text))
            fault = super().take(position)
            if fault is not None:
                _replace(self._done, str(self.num_hurt))
        return fault


class OrdersByFile:
    """The test's side of `FaultsByFile` of all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._orders = 0

    def give(self, order: HurtOrder) -> None:
        """From now on this order holds, and no earlier one."""
        self._orders += 1
        _replace(_order_of(self._folder), json.dumps([self._orders, dataclasses.asdict(order)], default=_name))

    def num_hurt(self, worker_id: str) -> int:
        """Messages that a worker has hurt since it started."""
        done = _done_of(self._folder, worker_id)
        return int(done.read_text()) if done.exists() else 0


def _order(text: str) -> HurtOrder:
    _, values = json.loads(text)
    return HurtOrder(**{**values, "kinds": tuple(Fault(kind) for kind in values["kinds"])})


def _name(fault: Fault) -> str:
    return fault.value


def _order_of(folder: Path) -> Path:
    return folder.with_suffix(_SUFFIX)


def _done_of(folder: Path, worker_id: str) -> Path:
    return folder.with_suffix(f".{worker_id}{_SUFFIX}")


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.fresh")
    fresh.write_text(text)
    os.replace(fresh, path)
