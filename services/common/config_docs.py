"""Describes settings classes as data: what help texts, documentation and the readers of sources need."""

import enum
import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One setting: its name, flag, environment variable, type and default as text, and what it means."""

    name: str
    flag: str
    env: str
    type: str
    default: str
    description: str


def describe_fields(cls: type[BaseModel], env_prefix: str) -> list[FieldDoc]:
    """Every field of a model, in the order of definition.

    Raises:
        TypeError: a field has no description.
    """
    return [_describe(cls, name, info, env_prefix) for name, info in cls.model_fields.items()]


def _describe(cls: type[BaseModel], name: str, info: FieldInfo, env_prefix: str) -> FieldDoc:
    if not info.description:
        raise TypeError(f"{cls.__name__}.{name} has no description")
    return FieldDoc(
        name=name,
        flag=f"--{name.replace('_', '-')}",
        env=f"{env_prefix}{name.upper()}",
        type=_type_name(info.annotation),
        default="required" if info.is_required() else _text(info.get_default(call_default_factory=False)),
        description=info.description,
    )


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(str(member.value) for member in annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_name(argument) for argument in arguments if argument is not type(None))
    return getattr(annotation, "__name__", str(annotation))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return "none" if value is None else str(value)
