"""The errors that cross process borders.

    BatonError
    ├── InvalidRequest          a field of the request is wrong                    never retry
    ├── NotFound                no such model                                      never
    ├── Unauthenticated         the caller did not say who it is, or wrongly       never
    ├── PermissionDenied        the caller may not do this                         never
    ├── Overloaded              no room now; says when to come back
    │   ├── QueueFull           a bounded queue is full                            other worker
    │   ├── QueueExpired        it waited longer than a queue keeps it             other worker
    │   ├── RateLimited         the caller asks more often than it may             same worker, later
    │   └── KvPoolFull          the request needs more blocks than can be had      other worker
    ├── NotReady                cannot take requests now
    │   ├── NoWorker            no worker of a tier is alive                       same worker, later
    │   ├── EngineStalled       a step has taken far too long                      other worker
    │   └── Draining            the worker is leaving                              other worker
    ├── PeerError               another process failed
    │   ├── PeerUnreachable     cannot be reached, died or was restarted           other worker
    │   ├── StepFailed          its model raised in a step with the request        other worker
    │   └── PeerIncompatible    the layouts do not fit                             other worker
    ├── HandoffError            KV did not arrive
    │   ├── TicketUnknown       never opened, expired or given back                other worker
    │   ├── TicketExpired       its lease ended before the KV was verified         other worker
    │   ├── ReservationExpired  reserved blocks waited too long for KV             other worker
    │   ├── KvCorrupt           a checksum did not match                           same worker
    │   └── ChannelBroken       the channel died during the transfer               same worker
    ├── Unservable              workers failed in each step that ran the request   never
    ├── RoleRefused             a worker could not take another tier               never
    ├── DeadlineExceeded        the request's time is up                           never
    ├── Cancelled               the request was withdrawn                          never
    │   └── SlowReader          its client left too much unread, or for too long   never
    └── Internal                a bug; the log has the id                          never

`common/rpc/status.py` has the only mapping to gRPC. asyncio.CancelledError is never converted into one of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from services.common.error_kinds import Code, Retry


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that is wrong; `field` is its path in the proto, such as `sampling.top_p`."""

    field: str
    description: str


class BatonError(Exception):
    """Root of all errors that a client or a peer may see.

    The message says what happened, why, what to do. `details` are short facts for machines (no prompt text, no secret).
    `retry_after_s` is a hint where waiting helps.
    """

    code: ClassVar[Code] = Code.INTERNAL
    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(
        self, message: str, *, details: Mapping[str, str] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s


class InvalidRequest(BatonError):
    """Fields of the request are wrong; `violations` names every one."""

    code = Code.INVALID_ARGUMENT

    def __init__(
        self, violations: Sequence[FieldViolation] | FieldViolation, *, details: Mapping[str, str] | None = None
    ) -> None:
        self.violations = (violations,) if isinstance(violations, FieldViolation) else tuple(violations)
        super().__init__("; ".join(f"{v.field} {v.description}" for v in self.violations), details=details)


class NotFound(BatonError):
    """What the request names does not exist."""

    code = Code.NOT_FOUND


class Unauthenticated(BatonError):
    """The call carries no token, or one that is not known here."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(BatonError):
    """The caller is known, or shows something secret, and still may not do this."""

    code = Code.PERMISSION_DENIED


class Overloaded(BatonError):
    """No room for the request now."""

    code = Code.RESOURCE_EXHAUSTED
    retry = Retry.OTHER_WORKER


class QueueFull(Overloaded):
    """A bounded queue is full."""


class QueueExpired(Overloaded):
    """The request waited longer than a queue keeps anybody."""


class RateLimited(Overloaded):
    """The caller asks more often than it may."""

    retry = Retry.SAME_WORKER


class KvPoolFull(Overloaded):
    """The request needs more KV blocks than the worker can ever give it, or than it could in time."""


class NotReady(BatonError):
    """Cannot take requests now."""

    code = Code.UNAVAILABLE
    retry = Retry.OTHER_WORKER


class NoWorker(NotReady):
    """No worker of a tier that the request needs is alive."""

    retry = Retry.SAME_WORKER


class EngineStalled(NotReady):
    """The worker's engine has been in one step for too long."""


class Draining(NotReady):
    """The worker is leaving and finishes what it has."""


class PeerError(BatonError):
    """Another process failed."""

    code = Code.UNAVAILABLE
    retry = Retry.OTHER_WORKER


class PeerUnreachable(PeerError):
    """A peer cannot be reached, died, or was restarted and no longer has what was asked of it."""


class StepFailed(PeerError):
    """The model raised in a step that had the request in it."""


class PeerIncompatible(PeerError):
    """The layouts of two workers do not fit; the message names the field and both values."""

    code = Code.FAILED_PRECONDITION


class HandoffError(BatonError):
    """The KV of a prompt did not arrive."""

    code = Code.UNAVAILABLE
    retry = Retry.OTHER_WORKER


class TicketUnknown(HandoffError):
    """The ticket was never opened, has expired or was given back."""


class TicketExpired(HandoffError):
    """The ticket's lease ended before all KV was verified."""


class ReservationExpired(HandoffError):
    """Blocks that were reserved for KV got none for a whole lease; they serve other requests now."""


class KvCorrupt(HandoffError):
    """A checksum did not match; the KV was dropped, nothing was decoded from it."""

    code = Code.DATA_LOSS
    retry = Retry.SAME_WORKER


class ChannelBroken(HandoffError):
    """The channel died during the transfer, and what was left did not come over another one soon enough."""


class Unservable(BatonError):
    """More than one worker failed in a step that had the request in it; no other one is put at risk."""

    code = Code.FAILED_PRECONDITION


class RoleRefused(BatonError):
    """A worker cannot take another tier, or could not and is what it was; the message says why."""

    code = Code.FAILED_PRECONDITION


class DeadlineExceeded(BatonError):
    """The request's time is up."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(BatonError):
    """The request was withdrawn by whoever sent it."""

    code = Code.CANCELLED


class SlowReader(Cancelled):
    """The client left its answer unread for too long, or too much of it."""


class Internal(BatonError):
    """A bug. The message is opaque; the log has the details under the id that it names."""


def error_classes() -> dict[str, type[BatonError]]:
    """Every error class by name, the root left out."""
    classes: list[type[BatonError]] = list(BatonError.__subclasses__())
    for cls in classes:  # grows while it is walked
        classes.extend(cls.__subclasses__())
    return {cls.__name__: cls for cls in classes}
