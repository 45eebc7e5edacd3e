"""The limiter alone, on a clock of its own: its width, its queue, pauses; and a real clock for the limits a minute."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from stillhouse.labelling import rate_limiter as module
from stillhouse.labelling.rate_limiter import RateLimiter
from stillhouse.recipe.label import LimitSettings


class Clock:
    """Stands for `time.monotonic` and `asyncio.sleep`: sleeping moves it on at once."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


def settled(work: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(work, timeout=10))


async def round_trip(limiter: RateLimiter, clock: Clock, bears: int = 10_000) -> int:
    """Send as many as the width allows, one second apart from the next trip; the server turns away what it cannot bear."""
    sent = [await limiter.acquire(1, 1) for _ in range(limiter.concurrency)]
    clock.now += 1.0
    for place, moment in enumerate(sent):
        limiter.release()
        if place < bears:
            limiter.succeeded()
        else:
            limiter.overloaded(moment)
    clock.now += 1e-3
    return len(sent)


def test_the_width_doubles_each_round_trip_up_to_the_concurrency(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(50, LimitSettings())
        assert [await round_trip(limiter, clock) for _ in range(6)] == [4, 8, 16, 32, 50, 50]

    settled(work())


def test_a_concurrency_below_the_first_handful_is_kept(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(2, LimitSettings())
        assert [await round_trip(limiter, clock) for _ in range(3)] == [2, 2, 2]

    settled(work())


def test_one_overload_halves_the_width_once_and_then_it_grows_by_one_a_round_trip(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(1000, LimitSettings())
        widths = [await round_trip(limiter, clock, bears=20) for _ in range(12)]
        assert widths[:4] == [4, 8, 16, 32]  # then 12 of 32 are turned away: one cut, to half of what it had grown to
        assert widths[4] == 26
        later = widths[5:]
        assert max(later) <= 22
        assert min(later) >= 10
        assert all(following - before in {0, 1} for before, following in itertools.pairwise(later) if before < 20)

    settled(work())


def test_signs_from_before_a_cut_are_no_further_sign(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(64, LimitSettings())
        for _ in range(3):
            await round_trip(limiter, clock)
        sent = [await limiter.acquire(1, 1) for _ in range(32)]
        clock.now += 5.0
        for moment in sent:  # time-outs come in one after another
            limiter.overloaded(moment)
            clock.now += 2.0
        assert limiter.concurrency == 16
        limiter.overloaded(clock.now)
        assert limiter.concurrency == 8

    settled(work())


def test_the_width_never_falls_below_one(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(8, LimitSettings())
        for _ in range(10):
            clock.now += 1.0
            limiter.overloaded(clock.now)
        assert await round_trip(limiter, clock) == 1

    settled(work())


def test_a_pause_holds_everybody_back_and_the_longest_counts(clock: Clock) -> None:
    async def work() -> None:
        limiter = RateLimiter(4, LimitSettings())
        limiter.pause(5.0)
        limiter.pause(2.0)
        assert await limiter.acquire(1, 1) == 105.0
        assert await limiter.acquire(1, 1) == 105.0
        assert clock.slept == [5.0]

    settled(work())


def test_a_pause_that_begins_while_one_waits_for_its_minute_is_kept(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        limiter = RateLimiter(4, LimitSettings(requests_per_minute=60))

        async def acquire(_: object, __: float) -> None:
            limiter.pause(3.0)

        monkeypatch.setattr(module, "_acquire_units", acquire)
        assert await limiter.acquire(1, 1) >= 103.0

    settled(work())


async def _first_four_inside(limiter: RateLimiter) -> None:
    for _ in range(4):
        await limiter.acquire(1, 1)


def test_who_waits_comes_in_in_order() -> None:
    async def work() -> None:
        limiter, order = RateLimiter(4, LimitSettings()), []
        await _first_four_inside(limiter)

        async def waiting(name: int) -> None:
            await limiter.acquire(1, 1)
            order.append(name)
            limiter.release()

        tasks = [asyncio.create_task(waiting(name)) for name in range(20)]
        await asyncio.sleep(0)
        limiter.release()
        await asyncio.gather(*tasks)
        assert order == list(range(20))

    settled(work())


CancelAndLeave = Callable[[RateLimiter, "asyncio.Task[float]"], Awaitable[None]]


async def _cancelled_in_the_queue(limiter: RateLimiter, task: "asyncio.Task[float]") -> None:
    task.cancel()
    await asyncio.sleep(0)
    limiter.release()


async def _cancelled_as_a_place_becomes_free(limiter: RateLimiter, task: "asyncio.Task[float]") -> None:
    task.cancel()
    limiter.release()


async def _cancelled_when_its_place_was_given(limiter: RateLimiter, task: "asyncio.Task[float]") -> None:
    limiter.release()
    task.cancel()


@pytest.mark.parametrize(
    "way", [_cancelled_in_the_queue, _cancelled_as_a_place_becomes_free, _cancelled_when_its_place_was_given]
)
def test_one_who_is_cancelled_while_waiting_keeps_no_place(way: CancelAndLeave) -> None:
    async def work() -> None:
        limiter = RateLimiter(4, LimitSettings())
        await _first_four_inside(limiter)
        cancelled, next_one = (asyncio.create_task(limiter.acquire(1, 1)) for _ in range(2))
        await asyncio.sleep(0)
        await way(limiter, cancelled)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await next_one  # the one place that became free
        late = asyncio.create_task(limiter.acquire(1, 1))
        await asyncio.sleep(0)
        assert not late.done()  # and there is no second
        limiter.release()
        await late

    settled(work())


def test_one_who_is_cancelled_in_a_pause_keeps_no_place() -> None:
    async def work() -> None:
        limiter = RateLimiter(1, LimitSettings())
        limiter.pause(0.2)
        cancelled = asyncio.create_task(limiter.acquire(1, 1))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await limiter.acquire(1, 1)

    settled(work())


@pytest.mark.parametrize(
    ("limits", "tokens", "times", "seconds"),
    [
        (LimitSettings(requests_per_minute=600), 1, 20, 1.0),  # 10 a second, 10 in the bucket
        (LimitSettings(tokens_per_minute=60_000), 500, 4, 1.0),  # 1,000 a second, 1,000 in the bucket
        (LimitSettings(tokens_per_minute=60_000), 2000, 1, 1.0),  # more than the bucket holds: it waits for the rest
        (LimitSettings(requests_per_minute=6000, tokens_per_minute=60_000), 100, 20, 1.0),  # the tighter one counts
    ],
)
def test_limits_a_minute_are_kept(limits: LimitSettings, tokens: int, times: int, seconds: float) -> None:
    """The limiter makes the lower bound certain; a machine that is busy only takes longer."""

    async def work() -> None:
        limiter = RateLimiter(64, limits)
        began = time.monotonic()
        for _ in range(times):
            await limiter.acquire(1, tokens)
            limiter.release()
        assert time.monotonic() - began >= seconds * 0.95

    settled(work())


def test_every_request_of_a_call_counts_against_the_limit() -> None:
    """Twenty in one call at 10 a second, with 10 in the bucket."""

    async def work() -> None:
        limiter = RateLimiter(64, LimitSettings(requests_per_minute=600))
        began = time.monotonic()
        await limiter.acquire(20, 1)
        assert time.monotonic() - began >= 0.95

    settled(work())


def test_a_limit_below_one_a_second_holds_one_request_in_its_bucket() -> None:
    async def work() -> None:
        limiter = RateLimiter(4, LimitSettings(requests_per_minute=5))
        await limiter.acquire(1, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(limiter.acquire(1, 1), timeout=0.2)

    settled(work())
