"""Runs the benchmark of one tier: on an engine of its own, or on a worker that runs."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import show_rows, write_report
from services.common.config import ConfigError
from services.common.errors import BatonError

Rows = list[dict[str, Any]]
# What was measured, as the report tells it, and a row for each case: figures, and a name where there are several sides.
Found = tuple[Mapping[str, object], Rows]


def run_part(
    name: str, argv: Sequence[str], options: argparse.Namespace, measure: Callable[[argparse.Namespace], Found]
) -> int:
    """Measures, prints and writes; 2 where it cannot be measured."""
    try:
        what, rows = measure(options)
    except (ConfigError, BatonError, OSError, TimeoutError) as error:
        sys.stderr.write(f"benchmarks: {error or type(error).__name__}\n")
        return 2
    show_rows(rows, write_report(name, argv, options.out, {**what, "rows": rows}))
    return 0
