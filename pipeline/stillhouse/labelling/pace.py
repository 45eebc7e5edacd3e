"""How fast a teacher is asked: requests at once, requests and tokens a minute, and pauses that a server asks for.

    sent = await pace.enter(requests=1, tokens=300)
    ... one attempt ...
    pace.leave(); pace.succeeded(), or pace.overloaded(sent)

How many requests a server bears at once is found by additive increase and multiplicative decrease, as TCP finds a path's
width (Chiu and Jain, 1989): from a handful it doubles every round trip until the first sign of overload, is then halved at
each sign, and grows by one a round trip between. What was sent before a cut is no further sign: it was sent at the old
width. `label.concurrency` is the most that is tried.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from aiolimiter import AsyncLimiter

from stillhouse.recipe.label import LimitSettings

_FIRST = 4  # requests at once before the first answer: what a wrong key or a wrong model costs


class Pace:
    """Shared by every request of a run; used from one event loop."""

    def __init__(self, most: int, limits: LimitSettings) -> None:
        self._most = most
        self._width = float(min(most, _FIRST))
        self._growing = True  # until the first overload
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume = 0.0  # time.monotonic() before which nothing is sent
        self._last_cut = 0.0  # time.monotonic()
        self._requests = _per_minute(limits.requests_per_minute)
        self._tokens = _per_minute(limits.tokens_per_minute)

    @property
    def width(self) -> int:
        """How many requests are tried at once just now."""
        return int(self._width)

    async def enter(self, requests: int, tokens: int) -> float:
        """Wait until so much may be sent; `leave` must follow. Returns the moment, for `overloaded`."""
        await self._slot()
        try:
            await self._pause_over()
            await _acquire(self._requests, requests)
            await _acquire(self._tokens, tokens)
            await self._pause_over()  # of one that began meanwhile
            return time.monotonic()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """The attempt is over, however it went."""
        self._inside -= 1
        self._wake()

    def succeeded(self) -> None:
        """An answer came: a little more may be tried at once."""
        if self._width < self._most:
            self._width = min(float(self._most), self._width + (1.0 if self._growing else 1.0 / self._width))
            self._wake()

    def overloaded(self, sent: float) -> None:
        """The server had too much to do for what was sent at that moment: half as much at once."""
        self._growing = False
        if sent > self._last_cut:
            self._width = max(1.0, self._width / 2)
            self._last_cut = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Send nothing for so long."""
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
            if turn.done() and not turn.cancelled():  # it was this one's turn already
                self.leave()
            elif turn in self._waiting:  # `_wake` may have passed over it already
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
    """A bucket that holds one second's share (at least one unit), so that no minute sees more than the limit and a bit."""
    if limit is None:
        return None
    seconds = max(1.0, 60.0 / limit)
    return AsyncLimiter(limit * seconds / 60.0, seconds)


async def _acquire(limiter: AsyncLimiter | None, amount: float) -> None:
    """Take `amount`, in parts that fit the bucket."""
    if limiter is None:
        return
    while amount > 0:
        part = min(amount, limiter.max_rate)
        await limiter.acquire(part)
        amount -= part
