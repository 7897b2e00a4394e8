"""The engine of a simulated worker, and the gate at which its threads stand still."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from services.engine.batch import BatchItem, ItemResult
from tests.harness.fake_engine import FakeEngine, FakeKv, FakeLimits
from tests.harness.memory_rpc import Network, current_process
from tests.harness.pauses import Point, ask
from tests.harness.virtual_time import VirtualClock

STEP_S = (0.005, 0.02)


class World(Protocol):
    """What of a simulated cluster its engines look at."""

    clock: VirtualClock
    network: Network
    pauses: dict[tuple[str, Point], int]
    standing: set[str]


class SimulatedEngine(FakeEngine):
    """A fake engine whose steps take virtual time, and that stands still where a pause says so."""

    def __init__(self, world: "World", name: str, limits: FakeLimits, seed: int, layout: Mapping[str, Any]) -> None:
        super().__init__(limits)
        self.layout = dataclasses.replace(self.layout, **layout)
        self.kv = FakeKv(self.layout, limits.num_blocks)
        self.kv.device = torch.device("cpu")  # type: ignore[attr-defined]
        self.slowness = 1.0
        self._world = world
        self._gate = SimulatedGate(world, name)
        self._random = random.Random(seed)

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """As the fake engine's."""
        ask(self._gate, items)
        self._world.clock.sleep(self._random.uniform(*STEP_S) * self.slowness)
        return super().step(items)

    def close(self) -> None:
        """Nothing to free."""


class SimulatedGate:
    """Where the threads of one worker stand still; satisfies `pauses.Gate`."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._name = name
        self._tier = name.rpartition("-")[0]

    def pass_by(self, point: Point, place: int) -> None:
        """As `pauses.Gate`."""
        world = self._world
        process = current_process()

        def may_go_on() -> bool:
            at = world.pauses.get((self._tier, point), float("inf"))
            return at > place and not world.network.is_frozen(process)

        if not may_go_on():
            world.standing.add(self._name)
            world.clock.wait(may_go_on)
            world.standing.discard(self._name)
