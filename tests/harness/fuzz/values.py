"""Hostile values for every kind of field that a message can have."""

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_INT32 = (0, 1, -1, 2, 3, 7, 16, 17, 64, 97, 127, 128, 255, 256, 4096, 2**16, 2**31 - 1, -(2**31))
_INT64 = (*_INT32, 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
_UINT32 = (0, 1, 2, 5, 96, 97, 98, 255, 256, 65_535, 2**31, 2**32 - 1)
_UINT64 = (*_UINT32, 2**53 + 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 0.01, 100.0, 101.0, 3.4e38, -3.4e38, 1e-45)
_NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
_STRINGS = (
    "",
    "a",
    " ",
    "0",
    "-1",
    "nan",
    "true",
    "fake",
    "gloo",
    "nccl",
    "float32",
    "user",
    "\x00",
    "a\x00b",
    "a\nb\rc",
    "\u202e\u200d",
    "ß∂ƒ",
    "日本語 😀" * 9,
    "x" * 128,
    "x" * 129,
    "é" * 128,
    "../../../../etc/passwd",
    "{{ 7 * 7 }}{% raw %}",
    "%s%n%d",
    "'; drop table blocks --",
    "127.0.0.1:1",
    "127.0.0.1:99999",
    "[::1]:0",
    "localhost",
    "unix:/tmp/none",
    "dns:///[",
    "ipv4:127.0.0.1:1,127.0.0.1:2",
)
_LONG_STRINGS = ("x" * 5_000, "word " * 4_000, "\U0001f600" * 3_000, "\n" * 10_000)
_TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
_LENGTHS = (0, 1, 1, 2, 3, 17, 65, 300)
_LONG_LENGTHS = (1_025, 5_000, 40_000)

_INTEGERS: dict[int, tuple[int, ...]] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
}


class Harvest:
    """Strings, bytes and epochs that servers have answered with, by the name of their field."""

    def __init__(self, max_each: int = 32) -> None:
        self._known: dict[str, list[Any]] = {}
        self._max_each = max_each

    def add(self, name: str, value: Any) -> None:
        """Remembers a value, in the place of an old one where there are enough."""
        known = self._known.setdefault(name, [])
        if value and value not in known:
            known.append(value)
            del known[: -self._max_each]

    def take_from(self, message: Any) -> None:
        """Remembers what a message holds."""
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                parts = [] if field.message_type.GetOptions().map_entry else value if field.is_repeated else [value]
                for part in parts:
                    self.take_from(part)
            elif field.type in _TEXT or field.name == "epoch":
                for part in value if field.is_repeated else [value]:
                    self.add(field.name, part)

    def pick(self, rng: random.Random, name: str) -> Any:
        """A value that some server used under this name, as a rule a late one; None where there is none."""
        known = self._known.get(name)
        if not known:
            return None
        return rng.choice(known[-3:] if rng.random() < 0.7 else known)


def hostile_scalar(rng: random.Random, field: FieldDescriptor, harvest: Harvest) -> Any:
    """A value that the field can carry and that nobody would send."""
    kind = field.type
    known = harvest.pick(rng, field.name) if rng.random() < 0.3 else None
    if known is not None and _fits(known, field):
        return known
    if kind in _INTEGERS:
        return rng.choice(_INTEGERS[kind])
    if kind == FieldDescriptor.TYPE_FLOAT or kind == FieldDescriptor.TYPE_DOUBLE:
        return rng.choice(_FLOATS if rng.random() < 0.6 else _NO_NUMBERS)
    if kind == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.choice([*(value.number for value in field.enum_type.values), -1, 99, 2**31 - 1, -(2**31)])
    if kind == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 7, 16, 128, 4_096)))
    return rng.choice(_LONG_STRINGS) if rng.random() < 0.05 else rng.choice(_STRINGS)


def _fits(known: Any, field: FieldDescriptor) -> bool:
    """Fields of one name may carry different things."""
    kinds = {FieldDescriptor.TYPE_BYTES: bytes, FieldDescriptor.TYPE_STRING: str}
    return type(known) is kinds.get(field.type, int)


def hostile_length(rng: random.Random) -> int:
    """How many elements a repeated field gets: few as a rule, sometimes far too many."""
    return rng.choice(_LONG_LENGTHS) if rng.random() < 0.03 else rng.choice(_LENGTHS)
