"""Several servers as one: who is asked, who is set aside, and that a dead engine is no request's fault twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import AttemptFailed, Refusal
from stillhouse.teachers.serving import replicas as module
from stillhouse.teachers.serving.openai_api import Content
from stillhouse.teachers.serving.replicas import Replicas

GONE = AttemptFailed("unreachable", "connection refused", server_at_fault=True)
DEAD = AttemptFailed("server-error", "EngineCore encountered an issue")


@dataclass
class Api:
    """A server that says what it is told to say."""

    name: bytes
    trouble: Exception | None = None
    health: Exception | None = None
    seconds: float = 0.0
    asked: list[str] = field(default_factory=list)

    async def fetch(
        self, path: str, body: Mapping[str, Any] | None = None, *, outside_v1: bool = False
    ) -> Content | Refusal:
        self.asked.append(path)
        await asyncio.sleep(self.seconds)
        trouble = self.health if outside_v1 else self.trouble
        if trouble is not None:
            raise trouble
        return Content(self.name, 0.0)


async def ask(replicas: Replicas, *, check_health: bool = False) -> bytes:
    content = await replicas.fetch("/completions", {}, check_health=check_health)
    assert isinstance(content, Content)
    return content.body


def test_the_least_busy_is_asked() -> None:
    async def many() -> list[bytes]:
        replicas = Replicas([Api(b"slow", seconds=0.2), Api(b"quick", seconds=0.001)])
        first = asyncio.create_task(ask(replicas))
        await asyncio.sleep(0.01)
        return [*[await ask(replicas) for _ in range(3)], await first]

    assert asyncio.run(many()) == [b"quick"] * 3 + [b"slow"]


def test_one_that_fails_is_set_aside_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ill, well = Api(b"ill", trouble=GONE), Api(b"well")
    replicas = Replicas([ill, well])
    assert asyncio.run(ask(replicas)) == b"well"  # at once, by the other
    assert asyncio.run(ask(replicas)) == b"well"
    assert ill.asked == ["/completions"]  # left alone
    now[0] = 1.5
    assert asyncio.run(ask(replicas)) == b"well"
    assert len(ill.asked) == 2  # tried again, and set aside for longer
    now[0] = 3.0
    asyncio.run(ask(replicas))
    assert len(ill.asked) == 2
    now[0], ill.trouble = 4.0, None
    assert asyncio.run(ask(replicas)) == b"ill"


def test_where_nobody_is_well_the_wait_is_told() -> None:
    replicas = Replicas([Api(b"one", trouble=GONE), Api(b"two", trouble=GONE)])
    with pytest.raises(AttemptFailed, match="connection refused"):
        asyncio.run(ask(replicas))
    with pytest.raises(AttemptFailed, match="none of 2 servers is available") as caught:
        asyncio.run(ask(replicas))
    assert 0 < caught.value.wait <= 1
    assert caught.value.server_at_fault


def test_what_is_of_the_request_is_raised_as_it_is() -> None:
    one, two = Api(b"one", trouble=DEAD), Api(b"two")
    with pytest.raises(AttemptFailed, match="EngineCore"):
        asyncio.run(ask(Replicas([one, two])))
    assert two.asked == []


@pytest.mark.parametrize("trouble", [TeacherUnavailable("gone for good"), TeacherRefused("wrong key")])
def test_what_every_server_says_ends_it(trouble: Exception) -> None:
    with pytest.raises(TeacherUnavailable, match=str(trouble)):
        asyncio.run(ask(Replicas([Api(b"one", trouble=trouble)])))


def test_a_suspected_request_never_meets_an_engine_that_is_dead_already() -> None:
    dead, well = Api(b"dead", trouble=DEAD, health=DEAD), Api(b"well", seconds=0.001)
    assert asyncio.run(ask(Replicas([dead, well]), check_health=True)) == b"well"
    assert dead.asked == ["/health"]
    with pytest.raises(AttemptFailed, match="health check failed") as caught:
        asyncio.run(ask(Replicas([Api(b"dead", trouble=DEAD, health=DEAD)]), check_health=True))
    assert caught.value.server_at_fault
    assert "EngineCore" not in caught.value.detail  # or it would be blamed


def test_a_gateway_that_hides_health_is_asked_all_the_same() -> None:
    hidden = Api(b"behind", health=TeacherRefused("status 404"))
    assert asyncio.run(ask(Replicas([hidden]), check_health=True)) == b"behind"
