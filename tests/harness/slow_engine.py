"""An engine whose steps take longer than they need, for as long as a file says so."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from services.engine.batch import BatchItem, ItemResult

# What a step counts as at least: a tiny model's own steps are mostly overhead, ten times of which is still quick.
USUAL_STEP_S = 0.01


class SlowEngine:
    """An engine whose steps take `times()` times as long; None leaves them alone. Everything else is the engine's."""

    def __init__(self, engine: Any, times: Callable[[], float | None]) -> None:
        self._engine = engine
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, items: Sequence[BatchItem]) -> list[ItemResult]:
        """As the engine's, later."""
        started = monotonic()
        results = self._engine.step(items)
        times = self._times()
        if times is not None:
            took = monotonic() - started
            sleep(max(0.0, times * max(took, USUAL_STEP_S) - took))
        return results


class SlownessFiles:
    """Beside a folder, a file for each slow worker: how many times as long as usual its steps take."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, worker_id: str, times: float) -> None:
        """From now on steps of this worker take so many times as long."""
        path = self._path(worker_id)
        fresh = path.with_suffix(".fresh")
        fresh.write_text(str(times))
        fresh.replace(path)

    def times(self, worker_id: str) -> float | None:
        """How slow a worker is; None where nothing is said of it."""
        try:
            return float(self._path(worker_id).read_text())
        except FileNotFoundError:
            return None

    def _path(self, worker_id: str) -> Path:
        return self._folder.with_name(f"{self._folder.name}.{worker_id}.slow")
