"""Engines of one checkpoint that are measured in turn in one process, so that a drift of the machine falls on all."""

import argparse
from collections.abc import Callable, Sequence

from benchmarks.case import Case
from benchmarks.engine_case import EngineCase
from benchmarks.part import Found
from benchmarks.part_options import ENGINES
from benchmarks.progress import tracked
from benchmarks.stats import medians


class EngineTurns:
    """The engine that the options say, or each that `--engines` names.

    Args:
        options: those of `engine_parser`.
        sizes: most requests at once, most tokens of each, and most tokens of a step.

    Raises:
        ConfigError: there is no such checkpoint, or it or the memory does not allow it.
    """

    def __init__(self, options: argparse.Namespace, sizes: tuple[int, int, int]) -> None:
        self._rounds: int = options.rounds
        named = {name: argparse.Namespace(**{**vars(options), **ENGINES[name]}) for name in options.engines}
        self.engines = {name: EngineCase(each, *sizes) for name, each in (named or {"": options}).items()}

    def measure(self, title: str, cases: Sequence[Case], row: Callable[[EngineCase, Case], dict[str, float]]) -> Found:
        """A row for each case and engine, with medians over the rounds; every round turns the order round.

        A case that is there twice is measured twice and has two rows.
        """
        found: dict[tuple[int, str], list[dict[str, float]]] = {
            (number, name): [] for number in range(len(cases)) for name in self.engines
        }
        for index in range(self._rounds):
            for number, case in enumerate(tracked(title, cases)):
                for name in list(self.engines) if index % 2 == 0 else reversed(self.engines):
                    found[number, name].append(row(self.engines[name], case))
        told = {name: engine.describe() for name, engine in self.engines.items()}
        if "" in told:
            return {"engine": told[""]}, [medians(rows) for rows in found.values()]
        return {"engines": told}, [{"engine": name, **medians(rows)} for (_, name), rows in found.items()]
