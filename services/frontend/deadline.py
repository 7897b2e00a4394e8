"""Bounds a block of code by a request's deadline."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from services.common.errors import DeadlineExceeded


@contextlib.asynccontextmanager
async def until(deadline: float) -> AsyncGenerator[None, None]:
    """Cancels what runs inside at `deadline` (monotonic clock, seconds).

    Raises:
        DeadlineExceeded: the time was up before the block ended.
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout_at(loop.time() + deadline - time.monotonic())
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded("the request's time is up; allow more time or ask for fewer tokens") from error
