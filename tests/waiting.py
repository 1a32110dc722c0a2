"""Waiting for what another task, thread or process does, when nothing announces it."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 10) -> None:
    """Return once *condition* holds.

    Raises:
        TimeoutError: It did not within *seconds*.
    """
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
