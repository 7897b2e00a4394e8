"""How much a request matters, and what that is worth in a queue. Pure."""

import enum


class Priority(enum.IntEnum):
    """Class of a request; higher goes first. The numbers are those of `types.proto`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


def rank(priority: Priority, arrived_at: float, aging_s: float) -> float:
    """Place in a queue, lowest first: a class is worth a head start of `aging_s` seconds.

    A waiting request gains one class every `aging_s` seconds. As all gain at the same speed their order never changes,
    so it can be told at arrival, and nothing is overtaken by what arrives more than `aging_s` per class later.
    """
    return arrived_at - priority * aging_s
