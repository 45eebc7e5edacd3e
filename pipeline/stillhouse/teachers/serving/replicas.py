"""Load balancing over several servers of one model: the least busy first; one that fails is set aside and retried later.

    replicas = Replicas([OpenAiApi(endpoint) for endpoint in endpoints])
    content = await replicas.fetch("/completions", body)

If a server fails, its request goes to the next one at once, so failures stay invisible while one server works.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import AttemptFailed, Refusal
from stillhouse.teachers.serving.openai_api import Content

_FIRST_PAUSE = 1.0  # seconds that a failed server is set aside; doubled at each failure, up to
_LONGEST_PAUSE = 30.0


class Api(Protocol):
    """A client of one server, such as `OpenAiApi`."""

    async def fetch(
        self, path: str, body: Mapping[str, Any] | None = None, *, outside_v1: bool = False
    ) -> Content | Refusal: ...


@dataclass
class _Replica:
    api: Api
    outstanding: int = 0
    pause: float = 0.0  # seconds that it is set aside, 0 if it works
    available_at: float = 0.0  # time.monotonic() from which it is used again

    def failed(self) -> None:
        self.pause = min(_LONGEST_PAUSE, self.pause * 2 or _FIRST_PAUSE)
        self.available_at = time.monotonic() + self.pause


class Replicas:
    """Several servers of one model behind one `fetch`; use it from one event loop."""

    def __init__(self, apis: Sequence[Api]) -> None:
        self._replicas = [_Replica(api) for api in apis]

    async def fetch(self, path: str, body: Mapping[str, Any], *, check_health: bool = False) -> Content | Refusal:
        """Try the servers that are not set aside, the least busy first, until one answers.

        Args:
            path: the path below the base URL.
            body: the JSON body to post.
            check_health: whether to check a server's health before sending, so that an engine's death can be attributed to
                this request.

        Raises:
            AttemptFailed: the attempt failed, or every server is set aside.
            TeacherUnavailable: every server is set aside, the last one because it can answer no request.
        """
        tried: set[int] = set()
        failure: AttemptFailed | None = None
        while (replica := self._least_busy(tried)) is not None:
            tried.add(id(replica))
            replica.outstanding += 1
            try:
                if check_health:
                    await _check_health(replica.api)
                content = await replica.api.fetch(path, body)
            except AttemptFailed as caught:
                failure = caught
                if not caught.server_at_fault:
                    raise
                replica.failed()
            except TeacherUnavailable:
                replica.failed()
                if all(one.pause for one in self._replicas):
                    raise
            else:
                replica.pause = 0.0
                return content
            finally:
                replica.outstanding -= 1
        if failure is not None:
            raise failure
        wait = max(0.0, min(one.available_at for one in self._replicas) - time.monotonic())
        raise AttemptFailed(
            "unreachable", f"none of {len(self._replicas)} servers is available", server_at_fault=True, wait=wait
        )

    def _least_busy(self, tried: set[int]) -> _Replica | None:
        now = time.monotonic()
        available = [one for one in self._replicas if one.available_at <= now and id(one) not in tried]
        return min(available, key=lambda one: one.outstanding, default=None)


async def _check_health(api: Api) -> None:
    """Raise `AttemptFailed` if vLLM's /health fails, as it does once the engine is dead, even if the process still runs."""
    try:
        await api.fetch("/health", outside_v1=True)
    except AttemptFailed as failure:
        raise AttemptFailed(
            "unreachable", f"the server's health check failed: {failure.reason}", server_at_fault=True
        ) from None
    except TeacherRefused:  # a gateway that does not forward /health
        return
