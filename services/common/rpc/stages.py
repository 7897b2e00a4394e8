"""Carries the stage times of a request in a call's trailing metadata."""

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import grpc

from services.common.flat import flat
from services.common.rpc.tracing import set_span_stages
from services.common.types import StageTimes

_PREFIX = "baton-stage-"
_SUFFIX = "-ns"

_NAMES = tuple(field.name.removesuffix("_ns") for field in dataclasses.fields(StageTimes))


def set_stage_metadata(context: "grpc.aio.ServicerContext[Any, Any]", stages: StageTimes) -> None:
    """Adds `baton-stage-<stage>-ns` for every stage that took place; other trailing metadata is kept.

    The current span gets the same times.
    """
    set_span_stages(stages)
    kept = [(key, value) for key, value in cast(Any, context).trailing_metadata() or () if not key.startswith(_PREFIX)]
    times = flat(stages)
    added = [(f"{_PREFIX}{name}{_SUFFIX}", str(times[f"{name}_ns"])) for name in _NAMES if times[f"{name}_ns"]]
    context.set_trailing_metadata(tuple([*kept, *added]))


def stages_from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> StageTimes:
    """Reads back what `set_stage_metadata` wrote; what is missing or no number is 0."""
    found: dict[str, int] = {}
    for key, value in metadata or ():
        name = key.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if key.startswith(_PREFIX) and name in _NAMES and isinstance(value, str) and value.isdecimal():
            found[f"{name}_ns"] = int(value)
    return StageTimes(**found)
