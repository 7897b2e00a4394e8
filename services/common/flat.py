"""Dataclasses as dicts, where they are read and not changed: on every request, `dataclasses.asdict` copies too much."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def flat(item: "DataclassInstance") -> dict[str, Any]:
    """Field values by name, as they are: dataclasses inside stay what they are."""
    return {name: getattr(item, name) for name in item.__dataclass_fields__}
