"""Finds which field of an undecodable message is wrong.

Walks the wire format beside the message's descriptor; used only after protobuf itself has refused the bytes, so that
the answer can name the field. Pure.
"""

from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

WHOLE_MESSAGE = "request"
MAX_DEPTH = 100

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a request that could not be decoded; `field` is the path of what is wrong."""

    field: str
    description: str


class _Malformed(Exception):
    """The bytes are not a message."""


def diagnose(data: bytes, descriptor: Descriptor) -> Undecodable:
    """Says what is wrong with bytes that protobuf refused to parse as `descriptor`."""
    return _diagnose(data, descriptor, "", 0) or Undecodable(WHOLE_MESSAGE, "is not a valid message")


def _diagnose(data: bytes, descriptor: Descriptor, path: str, depth: int) -> Undecodable | None:
    seen: dict[int, int] = {}
    position = 0
    try:
        while position < len(data):
            tag, position = _read_varint(data, position)
            number, wire_type = tag >> 3, tag & 7
            value, position = _read_value(data, position, wire_type)
            field = descriptor.fields_by_number.get(number)
            if field is None or value is None:
                continue
            index = seen.get(number, 0)
            seen[number] = index + 1
            found = _check_field(value, field, _field_path(path, field, index), depth)
            if found is not None:
                return found
    except _Malformed:
        return Undecodable(path or WHOLE_MESSAGE, "is truncated or not a valid message")
    return None


def _check_field(value: bytes, field: FieldDescriptor, path: str, depth: int) -> Undecodable | None:
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            return Undecodable(path, "is not valid UTF-8")
    elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
        if depth >= MAX_DEPTH:
            return Undecodable(path, "is nested too deeply")
        return _diagnose(value, field.message_type, path, depth + 1)
    elif field.type != FieldDescriptor.TYPE_BYTES:
        return _check_packed(value, field, path)
    return None


def _check_packed(value: bytes, field: FieldDescriptor, path: str) -> Undecodable | None:
    bare = path.removesuffix("]").rpartition("[")[0] if path.endswith("]") else path
    width = _PACKED_WIDTHS.get(field.type)
    if width is not None:
        return Undecodable(bare, "is truncated") if len(value) % width else None
    position = 0
    try:
        while position < len(value):
            _, position = _read_varint(value, position)
    except _Malformed:
        return Undecodable(bare, "is truncated")
    return None


_PACKED_WIDTHS: dict[int, int] = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}


def _field_path(path: str, field: FieldDescriptor, index: int) -> str:
    name = f"{field.name}[{index}]" if field.is_repeated else field.name
    return f"{path}.{name}" if path else name


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for offset in range(_MAX_VARINT_BYTES):
        if position + offset >= len(data):
            raise _Malformed
        byte = data[position + offset]
        value |= (byte & 0x7F) << (7 * offset)
        if not byte & 0x80:
            return value, position + offset + 1
    raise _Malformed


def _read_value(data: bytes, position: int, wire_type: int) -> tuple[bytes | None, int]:
    """Skips one value; gives its bytes where it is length-delimited."""
    if wire_type == _VARINT:
        return None, _read_varint(data, position)[1]
    if wire_type == _LENGTH:
        length, position = _read_varint(data, position)
        end = position + length
        if end > len(data):
            raise _Malformed
        return data[position:end], end
    width = {_FIXED64: 8, _FIXED32: 4}.get(wire_type)
    if width is None or position + width > len(data):
        raise _Malformed
    return None, position + width
