"""Many at once, or one alone: nobody is beside one who is alone, and newcomers keep nobody waiting who wants to be."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

import pytest

from stillhouse.teachers.serving.shared_lock import SharedLock


class Room:
    """Who is inside just now, and who has been."""

    def __init__(self) -> None:
        self.lock = SharedLock()
        self.inside: list[str] = []
        self.entered: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    def enter(self, name: str, *, alone: bool = False) -> "asyncio.Task[None]":
        self.leave[name] = asyncio.Event()

        async def stay() -> None:
            async with self.lock.exclusive() if alone else self.lock.shared():
                self.inside.append(name)
                self.entered.append(name)
                try:
                    await self.leave[name].wait()
                finally:
                    self.inside.remove(name)

        return asyncio.create_task(stay())

    async def settle(self) -> list[str]:
        for _ in range(20):
            await asyncio.sleep(0)
        return list(self.inside)


def settled(work: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(work, timeout=10))


def test_many_are_inside_together() -> None:
    async def work() -> None:
        room = Room()
        for name in "abc":
            room.enter(name)
        assert await room.settle() == ["a", "b", "c"]

    settled(work())


def test_one_who_wants_to_be_alone_waits_for_all_and_goes_before_who_comes_later() -> None:
    async def work() -> None:
        room = Room()
        room.enter("a")
        room.enter("b")
        await room.settle()
        room.enter("alone", alone=True)
        await room.settle()
        room.enter("late")
        assert await room.settle() == ["a", "b"]
        room.leave["a"].set()
        assert await room.settle() == ["b"]
        room.leave["b"].set()
        assert await room.settle() == ["alone"]
        room.leave["alone"].set()
        assert await room.settle() == ["late"]

    settled(work())


def test_two_who_want_to_be_alone_are_so_one_after_the_other() -> None:
    async def work() -> None:
        room = Room()
        room.enter("one", alone=True)
        room.enter("two", alone=True)
        room.enter("many")
        assert await room.settle() == ["one"]
        room.leave["one"].set()
        assert await room.settle() == ["two"]
        room.leave["two"].set()
        assert await room.settle() == ["many"]

    settled(work())


@pytest.mark.parametrize("alone", [True, False])
def test_one_who_gives_up_waiting_or_fails_inside_holds_up_nobody(alone: bool) -> None:
    async def work() -> None:
        room = Room()
        first = room.enter("first", alone=not alone)
        await room.settle()
        waiting = room.enter("waiting", alone=alone)
        await room.settle()
        waiting.cancel()
        await room.settle()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        room.enter("next", alone=True)
        assert await room.settle() == ["next"]
        room.leave["next"].set()
        room.enter("last")
        assert await room.settle() == ["last"]

    settled(work())
