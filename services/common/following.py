"""Follows the membership for as long as its owner lives, whatever happens to those who tell it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import NoReturn

from services.common.errors import BatonError
from services.common.log import get_logger
from services.common.types import Membership

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

_log = get_logger(__name__)


async def follow(watch: Callable[[], AsyncGenerator[Membership]], apply: Callable[[Membership], None]) -> NoReturn:
    """Gives `apply` the membership, now and after each change; watches again, after a pause, when watching ends.

    Cancel: ends it; the watch is closed.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            async with contextlib.aclosing(watch()) as memberships:
                async for membership in memberships:
                    apply(membership)
                    pause_s = _FIRST_PAUSE_S
        except BatonError as error:
            _log.warning("membership_lost", error=type(error).__name__, message=error.message)
        except Exception as error:  # noqa: BLE001 - without this task no worker would ever come or go again
            _log.error("membership_failed", exc_info=error)
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
