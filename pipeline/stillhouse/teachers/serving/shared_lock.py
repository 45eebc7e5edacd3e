"""A shared/exclusive lock: a request suspected of killing an engine is sent with no other request in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SharedLock:
    """A shared/exclusive lock for one event loop. A waiter for exclusive access goes before all later ones."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._shared_count = 0
        self._is_exclusive = False
        self._exclusive_waiters = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Shared access: wait until no exclusive access is held or waited for."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_exclusive and not self._exclusive_waiters)
            self._shared_count += 1
        try:
            yield
        finally:
            async with self._changed:
                self._shared_count -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Exclusive access: wait until no other access is held."""
        async with self._changed:
            self._exclusive_waiters += 1
            try:
                await self._changed.wait_for(lambda: not self._is_exclusive and not self._shared_count)
                self._is_exclusive = True
            finally:
                self._exclusive_waiters -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            async with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
