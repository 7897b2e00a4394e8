"""What a rank process is told at its start. Knows how it is written down, not what becomes of it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.engine.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """Which rank to be, with which engine, and the descriptors that the process inherits.

    `links` are sockets to the other ranks, by rank; `exchange` and `kv` are memory, the latter the rank's own KV.
    """

    rank: int
    config: EngineConfig
    links: dict[int, int]
    exchange: int
    kv: int

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that the process inherits."""
        return (*self.links.values(), self.exchange, self.kv)

    def spell(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def read(cls, text: str) -> "RankOrder":
        """What `spell` wrote."""
        values: dict[str, Any] = json.loads(text)
        config: dict[str, Any] = values["config"]
        config["checkpoint"] = Path(config["checkpoint"])
        config["rank_cores"] = tuple(map(tuple, config["rank_cores"]))
        values["config"] = EngineConfig(**config)
        values["links"] = {int(rank): descriptor for rank, descriptor in values["links"].items()}
        return cls(**values)
