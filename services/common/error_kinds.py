"""What kind of failure an error is, and who may try again after it."""

import enum


class Retry(enum.Enum):
    """Who may try again after an error."""

    NEVER = "never"
    SAME_WORKER = "same_worker"
    OTHER_WORKER = "other_worker"


class Code(enum.Enum):
    """Kinds of failure; the names are those of the gRPC status codes."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    DATA_LOSS = "DATA_LOSS"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
