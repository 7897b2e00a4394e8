"""Types of command-line flags, for argparse: each reads a text or says what is wrong with it."""

import argparse
from collections.abc import Callable
from typing import TypeVar

from benchmarks.span import Span, parse_span
from services.common.settings import parse_bytes

T = TypeVar("T")


def count(text: str) -> int:
    """A whole number above 0."""
    return _read(text, int, lambda value: value >= 1, "must be 1 or more")


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, with commas between them."""
    return tuple(count(part) for part in text.split(","))


def positive(text: str) -> float:
    """A number above 0."""
    return _read(text, float, lambda value: 0 < value < float("inf"), "must be above 0")


def positives(text: str) -> tuple[float, ...]:
    """Numbers above 0, with commas between them."""
    return tuple(positive(part) for part in text.split(","))


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _read(text, float, lambda value: 0 <= value <= 1, "must be from 0 to 1")


def whole(text: str) -> int:
    """A whole number, 0 included."""
    return _read(text, int, lambda value: value >= 0, "must be 0 or more")


def byte_count(text: str) -> int:
    """Bytes, such as 65536 or 4MiB."""
    try:
        value = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    if not isinstance(value, int) or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 or more")
    return value


def byte_counts(text: str) -> tuple[int, ...]:
    """Bytes, with commas between them."""
    return tuple(byte_count(part) for part in text.split(","))


def span(text: str) -> Span:
    """A count or low:high."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read(text: str, kind: Callable[[str], T], is_right: Callable[[T], bool], rule: str) -> T:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number that fits here") from None
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text} {rule}")
    return value
