"""Many at once, or one alone: who is suspected of killing an engine is asked with nothing else under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Used from one event loop. One who wants to be alone goes before all who come later."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._together = 0
        self._alone = False
        self._wanting_alone = 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Wait until nobody is, or wants to be, alone."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not self._wanting_alone)
            self._together += 1
        try:
            yield
        finally:
            async with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until nobody else is under way."""
        async with self._changed:
            self._wanting_alone += 1
            try:
                await self._changed.wait_for(lambda: not self._alone and not self._together)
                self._alone = True
            finally:
                self._wanting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()
