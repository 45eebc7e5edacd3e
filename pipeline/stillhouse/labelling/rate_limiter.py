"""Limit how fast a teacher is called: concurrency, requests and tokens per minute, and pauses requested by the server.

    sent = await limiter.acquire(requests=1, tokens=300)
    ... one attempt ...
    limiter.release(); limiter.succeeded(), or limiter.overloaded(sent)

The concurrency that a server can handle is found by additive increase, multiplicative decrease, as in TCP congestion
control (Chiu and Jain, 1989): it starts small and doubles every round trip until the first sign of overload; each sign of
overload halves it, and between signs it grows by one per round trip. An overload of a request sent before the last cut is
ignored, because it was sent at the old concurrency. `label.concurrency` is the upper bound.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from aiolimiter import AsyncLimiter

from stillhouse.recipe.label import LimitSettings

_FIRST = 4  # concurrency before the first answer; limits what a wrong key or model costs


class RateLimiter:
    """Concurrency and rate limits of a run, shared by all its requests; use it from one event loop."""

    def __init__(self, max_concurrency: int, rates: LimitSettings) -> None:
        self._max_concurrency = max_concurrency
        self._concurrency = float(min(max_concurrency, _FIRST))
        self._growing = True  # until the first overload
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = 0.0  # time.monotonic() until which nothing is sent
        self._last_cut = 0.0  # time.monotonic() of the last decrease
        self._requests = _per_minute(rates.requests_per_minute)
        self._tokens = _per_minute(rates.tokens_per_minute)

    @property
    def concurrency(self) -> int:
        """The current limit on concurrent requests."""
        return int(self._concurrency)

    async def acquire(self, requests: int, tokens: int) -> float:
        """Wait until this much may be sent, then return the current time, for `overloaded`; call `release` afterwards."""
        await self._acquire_slot()
        try:
            await self._wait_for_pause()
            await _acquire_units(self._requests, requests)
            await _acquire_units(self._tokens, tokens)
            await self._wait_for_pause()  # a pause may have started meanwhile
            return time.monotonic()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Record that an attempt ended, whether it succeeded or failed."""
        self._active -= 1
        self._wake_waiters()

    def succeeded(self) -> None:
        """Record an answer: increase the concurrency a little."""
        if self._concurrency < self._max_concurrency:
            step = 1.0 if self._growing else 1.0 / self._concurrency
            self._concurrency = min(float(self._max_concurrency), self._concurrency + step)
            self._wake_waiters()

    def overloaded(self, sent: float) -> None:
        """Record that the server was overloaded by a request sent at that time: halve the concurrency."""
        self._growing = False
        if sent > self._last_cut:
            self._concurrency = max(1.0, self._concurrency / 2)
            self._last_cut = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Send nothing for this many seconds."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    async def _acquire_slot(self) -> None:
        if self._active < int(self._concurrency) and not self._waiting:
            self._active += 1
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():  # the slot was already assigned to this waiter
                self.release()
            elif slot in self._waiting:  # `_wake_waiters` may have removed it already
                self._waiting.remove(slot)
            raise

    async def _wait_for_pause(self) -> None:
        while (wait := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _wake_waiters(self) -> None:
        while self._waiting and self._active < int(self._concurrency):
            slot = self._waiting.popleft()
            if not slot.done():
                self._active += 1
                slot.set_result(None)


def _per_minute(limit: int | None) -> AsyncLimiter | None:
    """Return a leaky bucket of one second's share (at least one unit), so no minute exceeds the limit by much."""
    if limit is None:
        return None
    seconds = max(1.0, 60.0 / limit)
    return AsyncLimiter(limit * seconds / 60.0, seconds)


async def _acquire_units(limiter: AsyncLimiter | None, amount: float) -> None:
    """Acquire `amount` in pieces that fit the bucket."""
    if limiter is None:
        return
    while amount > 0:
        part = min(amount, limiter.max_rate)
        await limiter.acquire(part)
        amount -= part
