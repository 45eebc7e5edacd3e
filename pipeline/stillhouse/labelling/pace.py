"""Limit how fast a teacher is called: concurrency, requests and tokens per minute, and pauses requested by the server.

    sent = await pace.enter(requests=1, tokens=300)
    ... one attempt ...
    pace.leave(); pace.succeeded(), or pace.overloaded(sent)

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


class Pace:
    """Concurrency and rate limits of a run, shared by all its requests; use it from one event loop."""

    def __init__(self, most: int, limits: LimitSettings) -> None:
        self._most = most
        self._width = float(min(most, _FIRST))
        self._growing = True  # until the first overload
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume = 0.0  # time.monotonic() until which nothing is sent
        self._last_cut = 0.0  # time.monotonic() of the last decrease
        self._requests = _per_minute(limits.requests_per_minute)
        self._tokens = _per_minute(limits.tokens_per_minute)

    @property
    def width(self) -> int:
        """The current limit on concurrent requests."""
        return int(self._width)

    async def enter(self, requests: int, tokens: int) -> float:
        """Wait until this much may be sent, then return the current time, for `overloaded`; call `leave` afterwards."""
        await self._slot()
        try:
            await self._pause_over()
            await _acquire(self._requests, requests)
            await _acquire(self._tokens, tokens)
            await self._pause_over()  # a pause may have started meanwhile
            return time.monotonic()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Record that an attempt ended, whether it succeeded or failed."""
        self._inside -= 1
        self._wake()

    def succeeded(self) -> None:
        """Record an answer: increase the concurrency a little."""
        if self._width < self._most:
            self._width = min(float(self._most), self._width + (1.0 if self._growing else 1.0 / self._width))
            self._wake()

    def overloaded(self, sent: float) -> None:
        """Record that the server was overloaded by a request sent at that time: halve the concurrency."""
        self._growing = False
        if sent > self._last_cut:
            self._width = max(1.0, self._width / 2)
            self._last_cut = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Send nothing for this many seconds."""
        self._resume = max(self._resume, time.monotonic() + seconds)

    async def _slot(self) -> None:
        if self._inside < int(self._width) and not self._waiting:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot was already assigned to this waiter
                self.leave()
            elif turn in self._waiting:  # `_wake` may have removed it already
                self._waiting.remove(turn)
            raise

    async def _pause_over(self) -> None:
        while (wait := self._resume - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _wake(self) -> None:
        while self._waiting and self._inside < int(self._width):
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)


def _per_minute(limit: int | None) -> AsyncLimiter | None:
    """Return a leaky bucket of one second's share (at least one unit), so no minute exceeds the limit by much."""
    if limit is None:
        return None
    seconds = max(1.0, 60.0 / limit)
    return AsyncLimiter(limit * seconds / 60.0, seconds)


async def _acquire(limiter: AsyncLimiter | None, amount: float) -> None:
    """Acquire `amount` in pieces that fit the bucket."""
    if limiter is None:
        return
    while amount > 0:
        part = min(amount, limiter.max_rate)
        await limiter.acquire(part)
        amount -= part
