"""Decode streams that break at a chosen token, between a real frontend and real workers.

The worker sees its call cancelled, the frontend a lost peer: what a reset connection looks like from either side, at a
place that signals and sockets would only meet by chance.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.errors import PeerUnreachable
from services.common.types import ChoiceTokens, DecodeEvent, WorkRequest
from services.frontend.connection import Connection


class CutLinks:
    """Says where the next decode streams break; those after the last one are left alone."""

    def __init__(self) -> None:
        self.after: list[int] = []
        self.done = 0

    def install(self, patch: pytest.MonkeyPatch) -> "CutLinks":
        """Frontends that start from now on talk to their workers over such links, and do not pause between moves."""
        cuts = self

        class Cut(Connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.decode: Any = _CutDecode(self.decode, cuts)

        patch.setattr("services.frontend.server.Connection", Cut)
        patch.setattr("services.frontend.recovery._FIRST_PAUSE_S", 0.001)
        return self

    def next(self) -> int | None:
        """Tokens after which the stream that begins now breaks; None for never."""
        return self.after.pop(0) if self.after else None


class _CutDecode:
    def __init__(self, client: Any, cuts: CutLinks) -> None:
        self._client = client
        self._cuts = cuts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def decode(self, request: WorkRequest) -> AsyncIterator[DecodeEvent]:
        left = self._cuts.next()
        async with contextlib.aclosing(self._client.decode(request)) as events:
            async for event in events:
                if left is None:
                    yield event
                    continue
                size = sum(len(part.tokens) for part in event.choices)
                if size > left or not size:
                    yield DecodeEvent(choices=_first(event.choices, left))
                    self._cuts.done += 1
                    raise PeerUnreachable("the link was cut")
                left -= size
                yield event


def _first(parts: tuple[ChoiceTokens, ...], count: int) -> tuple[ChoiceTokens, ...]:
    """The first tokens of an event; an end comes only with its last token."""
    kept: list[ChoiceTokens] = []
    for part in parts:
        if len(part.tokens) > count:
            kept.append(ChoiceTokens(part.choice, part.tokens[:count]))
            break
        kept.append(part)
        count -= len(part.tokens)
    return tuple(part for part in kept if part.tokens)
