"""Ends what waits for a worker the moment that the worker is lost, where TCP alone may take long to notice."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from services.common.errors import PeerUnreachable


class Lifeline:
    """One worker's; `name` names it in errors.

    whole ◀──restore── cut ──▶ everything inside `held` ends

    Thread: the event loop's only.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_cut = False
        self._scopes: dict[asyncio.Timeout, Callable[[], bool]] = {}

    @contextlib.asynccontextmanager
    async def held(self, until: Callable[[], bool] = lambda: False) -> AsyncGenerator[None, None]:
        """Cancels what runs inside when the worker is lost, unless `until` says that it is not needed any more.

        Raises:
            PeerUnreachable: it is lost, or was before.
        """
        scope = asyncio.timeout(None)
        try:
            if self._is_cut:
                raise self._lost()
            async with scope:
                self._scopes[scope] = until
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self._lost() from error
        finally:
            self._scopes.pop(scope, None)

    def cut(self) -> None:
        """The worker is lost: it no longer answers, or another process has taken its place."""
        self._is_cut = True
        now = asyncio.get_running_loop().time()
        for scope, until in self._scopes.items():
            if not until():
                scope.reschedule(now)
        self._scopes.clear()

    def restore(self) -> None:
        """The worker answers again."""
        self._is_cut = False

    def _lost(self) -> PeerUnreachable:
        message = f"{self._name} was lost: it no longer reports, or was restarted"
        return PeerUnreachable(message, details={"peer": self._name})
