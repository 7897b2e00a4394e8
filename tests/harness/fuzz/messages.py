"""Makes requests out of descriptors: from nothing, from a good one with some of it changed, or as broken bytes."""

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal import encoder

from tests.harness.fuzz.values import Harvest, hostile_length, hostile_scalar

MAX_DEPTH = 6
_UNKNOWN_FIELD = 15_000


class MessageFuzzer:
    """Draws everything from one random generator, so that a seed tells a whole run."""

    def __init__(self, rng: random.Random, harvest: Harvest) -> None:
        self._rng = rng
        self._harvest = harvest

    def fill(self, message: Any, depth: int = 0) -> None:
        """Sets a random part of the fields to hostile values; of a oneof none, or one."""
        for field in message.DESCRIPTOR.fields:
            if self._rng.random() < 0.6:
                self._set(message, field, depth)

    def mutate(self, message: Any, depth: int = 0) -> None:
        """Changes one place: clears it, sets it, or goes down into a part that is there."""
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = self._rng.choice(fields)
        if self._rng.random() < 0.15:
            message.ClearField(field.name)
            return
        is_part = field.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(field)
        if is_part and self._rng.random() < 0.7 and depth < MAX_DEPTH:
            parts = getattr(message, field.name)
            parts = list(parts) if field.is_repeated else [parts] if message.HasField(field.name) else []
            if parts:
                self.mutate(self._rng.choice(parts), depth + 1)
                return
        self._set(message, field, depth)

    def bytes_of(self, message: Any) -> bytes:
        """Serializes, and breaks what comes out now and then."""
        data: bytes = message.SerializeToString()
        return self.broken(data, message.DESCRIPTOR) if self._rng.random() < 0.08 else data

    def broken(self, data: bytes, descriptor: Any) -> bytes:
        """Bytes that are no message, or another one than was meant."""
        rng = self._rng
        match rng.randrange(7):
            case 0:
                return data[: rng.randrange(len(data) + 1)]
            case 1:
                return rng.randbytes(rng.choice((1, 3, 50, 2_000)))
            case 2:
                return data + data
            case 3:
                return data + _field(_UNKNOWN_FIELD, 2, rng.randbytes(300))
            case 4:
                return data + self._wrong_type(descriptor)
            case 5:
                return _nested(descriptor, 200)
            case _:
                return self._flipped(data)

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if _is_map(field):
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(min(1_100, hostile_length(self._rng))):
                target = getattr(message, field.name)
                target[hostile_scalar(self._rng, key, self._harvest)] = hostile_scalar(self._rng, value, self._harvest)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            self._set_parts(message, field, depth)
        elif field.is_repeated:
            del getattr(message, field.name)[:]
            few = [hostile_scalar(self._rng, field, self._harvest) for _ in range(3)]
            length = hostile_length(self._rng)
            if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                length = min(length, 300)
            getattr(message, field.name).extend(self._rng.choices(few, k=length))
        else:
            setattr(message, field.name, hostile_scalar(self._rng, field, self._harvest))

    def _set_parts(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if depth >= MAX_DEPTH:
            return
        if not field.is_repeated:
            getattr(message, field.name).SetInParent()
            self.fill(getattr(message, field.name), depth + 1)
            return
        parts = getattr(message, field.name)
        del parts[:]
        for _ in range(min(40, hostile_length(self._rng))):
            self.fill(parts.add(), depth + 1)

    def _wrong_type(self, descriptor: Any) -> bytes:
        """A field of the message in a wire type that it does not have."""
        if not descriptor.fields:
            return b"\xff"
        number = self._rng.choice(descriptor.fields).number
        wire_type = self._rng.choice((0, 1, 2, 3, 4, 5, 6, 7))
        return _field(number, wire_type, self._rng.randbytes(self._rng.choice((0, 1, 4, 8, 11))))

    def _flipped(self, data: bytes) -> bytes:
        hurt = bytearray(data or b"\x00")
        for _ in range(self._rng.choice((1, 1, 3))):
            hurt[self._rng.randrange(len(hurt))] ^= 1 << self._rng.randrange(8)
        return bytes(hurt)


def _is_map(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry


def _field(number: int, wire_type: int, value: bytes) -> bytes:
    tag = encoder._VarintBytes(number << 3 | wire_type)  # type: ignore[attr-defined]
    return tag + (encoder._VarintBytes(len(value)) + value if wire_type == 2 else value)  # type: ignore[attr-defined]


def _nested(descriptor: Any, depth: int) -> bytes:
    """The message's first part within itself, far deeper than any message is."""
    numbers = [field.number for field in descriptor.fields if field.type == FieldDescriptor.TYPE_MESSAGE]
    data = b""
    for _ in range(depth):
        data = _field(numbers[0] if numbers else 1, 2, data)
    return data
