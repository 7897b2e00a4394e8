"""What a source's channel has to send: fetches on their way, and messages that lie in staging."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from services.kvtransfer.events import ChunkHeader, FetchEnd
from services.kvtransfer.tickets import Ticket


@dataclass(slots=True)
class Sending:
    """One fetch on its way: positions below `next_token` are staged or sent."""

    fetch_id: str
    ticket: Ticket
    next_token: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A message that lies in staging and must be sent."""

    header: ChunkHeader
    data: Tensor


Ahead = asyncio.Future[Staged] | FetchEnd


class TicketReads(Protocol):
    """Pins the blocks of tickets while they are read."""

    def begin_read(self, ticket_id: str) -> Ticket | None:
        """Pins the blocks of a live ticket; None where it is gone."""
        ...

    def end_read(self, ticket: Ticket) -> None:
        """The read is over."""
        ...
