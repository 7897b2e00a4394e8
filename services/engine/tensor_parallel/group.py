"""The ranks of one worker as one of them sees them: they begin steps together and meet in them.

Tensors go through memory that all of them map, an exchange with a place for each rank; messages only say that they are
there. Every rank adds up in the same order, so that what they have in common stays equal bit by bit. Two exchanges take
turns: who writes into one knows by the last meeting that all have read what was in it.
"""

from collections.abc import Mapping, Sequence

import torch

from services.engine.tensor_parallel.link import Kind, Link, RankLost

EXCHANGE_BYTES = 1 << 20  # of one rank's place in one of the two; larger tensors go in pieces


class StepAbandoned(Exception):
    """Another rank could not compute its part of the step; the next step may work."""


def exchange_bytes(degree: int) -> int:
    """Memory that `degree` ranks exchange tensors through."""
    return 2 * degree * EXCHANGE_BYTES


class RankGroup:
    """All ranks but the own one, by their links. Thread: one, the engine's; `close` may be called on any.

    After a `RankLost` the group is of no use any more and must be closed; every later call raises it too.

    Args:
        rank: the own one.
        links: to every other rank, by its number.
        exchange: uint8, `exchange_bytes` long, the same memory for all ranks.
        timeout_s: how long one rank waits for another in a step.
    """

    def __init__(self, rank: int, links: Mapping[int, Link], exchange: torch.Tensor, timeout_s: float) -> None:
        self.rank = rank
        self.degree = len(links) + 1
        self._links = links
        self._exchange = exchange.view(2, self.degree, EXCHANGE_BYTES)
        self._timeout_s = timeout_s
        self._turn = 0
        self._gave_up: set[int] = set()  # ranks whose ABANDON for this step was seen

    def begin(self, step: bytes) -> None:
        """Tells the other ranks what to compute; rank 0 only.

        Raises:
            RankLost: one of them is gone.
        """
        self._send_all(Kind.STEP, step)

    def next_step(self) -> bytes | None:
        """Waits for what to compute next, as long as rank 0 lives; None once it closes. For any other rank.

        Raises:
            RankLost: rank 0 is gone.
        """
        while True:
            message = self._links[0].receive(0)
            if message.kind is Kind.STEP:
                return message.payload
            if message.kind is Kind.STOP:
                return None
            if message.kind is not Kind.ABANDON:
                raise RankLost(f"rank 0 sent {message.kind.name} between two steps; the worker must restart")
            self._gave_up.add(0)
            self.abandon()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds a tensor up over all ranks, in place, and gives it back.

        Raises:
            RankLost: a rank is gone or did not come in time.
            StepAbandoned: a rank could not compute its part.
        """
        for piece in tensor.view(-1).split(EXCHANGE_BYTES // tensor.element_size()):
            places = self._meet(piece)
            torch.sum(places[:, : piece.numel()], 0, out=piece)
        return tensor

    def gather(self, part: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Puts the ranks' parts beside each other in the last dimension, on rank 0; others get their own part back.

        Args:
            part: [..., sizes[rank]].
            sizes: of all ranks' parts.

        Raises:
            RankLost: as in `all_reduce`.
            StepAbandoned: likewise.
        """
        rows, room = part.numel() // sizes[self.rank], EXCHANGE_BYTES // part.element_size()
        own = part.reshape(-1)
        found = [part.new_empty(rows * size) for size in sizes] if self.rank == 0 else []
        for first in range(0, rows * max(sizes), room):
            places = self._meet(own[first : first + room])
            for whole, place in zip(found, places, strict=False):
                piece = whole[first : first + room]
                piece.copy_(place[: piece.numel()])
        if not found:
            return part
        shaped = [flat.view(*part.shape[:-1], size) for flat, size in zip(found, sizes, strict=True)]
        return torch.cat(shaped, dim=-1)

    def abandon(self) -> None:
        """Ends a step that failed here or elsewhere: returns once all ranks are ready for the next one.

        Messages keep their order, so whatever comes from a rank before its word that it gave up belongs to this step.

        Raises:
            RankLost: a rank is gone.
        """
        self._send_all(Kind.ABANDON)
        for link in self._links.values():
            while link.peer not in self._gave_up:
                if link.receive(self._timeout_s).kind is Kind.ABANDON:
                    self._gave_up.add(link.peer)
        self._gave_up.clear()
        self._turn = 0

    def close(self) -> None:
        """Ends the links; idempotent."""
        for link in self._links.values():
            link.close()

    def _meet(self, piece: torch.Tensor) -> torch.Tensor:
        """Shows a piece to all ranks and waits until all have shown theirs; gives the places, [degree, …]."""
        self._turn = (self._turn + 1) % 256
        places = self._exchange[self._turn % 2].view(piece.dtype)
        places[self.rank, : piece.numel()].copy_(piece)
        self._send_all(Kind.MEET)
        for link in self._links.values():
            message = link.receive(self._timeout_s)
            if message.kind is Kind.ABANDON:
                self._gave_up.add(link.peer)
                raise StepAbandoned(f"rank {link.peer} could not compute its part of the step")
            if message.kind is not Kind.MEET or message.turn != self._turn:
                what = f"{message.kind.name} {message.turn} where MEET {self._turn} was due"
                raise RankLost(f"rank {link.peer} sent {what}; the worker must restart")
        return places

    def _send_all(self, kind: Kind, payload: bytes = b"") -> None:
        for link in self._links.values():
            link.send(kind, self._turn, payload)
