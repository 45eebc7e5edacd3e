"""Several servers of one model as one: the least busy first; one that fails is set aside, tried again, and taken back.

    replicas = Replicas([OpenAiApi(endpoint) for endpoint in endpoints])
    content = await replicas.fetch("/completions", body)

A request whose server fails goes to the next one at once, so that nobody notices while one is well.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import Refusal, TryAgain
from stillhouse.teachers.serving.openai_api import Content

_FIRST_REST = 1.0  # seconds that a server which failed is left alone; doubled each time, up to
_LONGEST_REST = 30.0


class Api(Protocol):
    """One server, as `OpenAiApi` is."""

    async def fetch(
        self, path: str, body: Mapping[str, Any] | None = None, *, beside_v1: bool = False
    ) -> Content | Refusal: ...


@dataclass
class _Replica:
    api: Api
    outstanding: int = 0
    rest: float = 0.0  # seconds, 0 where it is well
    back_at: float = 0.0  # time.monotonic() at which it is tried again

    def failed(self) -> None:
        self.rest = min(_LONGEST_REST, self.rest * 2 or _FIRST_REST)
        self.back_at = time.monotonic() + self.rest


class Replicas:
    """Used from one event loop; see the module's docstring."""

    def __init__(self, apis: Sequence[Api]) -> None:
        self._replicas = [_Replica(api) for api in apis]

    async def fetch(self, path: str, body: Mapping[str, Any], *, surely_well: bool = False) -> Content | Refusal:
        """One attempt at each server that is not set aside, until one answers.

        Args:
            path: below the base URL.
            body: what is posted.
            surely_well: ask a server only after it said that its engine is alive, so that what comes of the request is of
                its own making.

        Raises:
            TryAgain, TeacherUnavailable: as the last server that was tried said it, or none is there to be tried.
        """
        tried: set[int] = set()
        trouble: TryAgain | None = None
        while (replica := self._least_busy(tried)) is not None:
            tried.add(id(replica))
            replica.outstanding += 1
            try:
                if surely_well:
                    await _see_that_it_is_well(replica.api)
                content = await replica.api.fetch(path, body)
            except TryAgain as caught:
                trouble = caught
                if not caught.of_server:
                    raise
                replica.failed()
            except TeacherUnavailable:
                replica.failed()
                if all(one.rest for one in self._replicas):
                    raise
            else:
                replica.rest = 0.0
                return content
            finally:
                replica.outstanding -= 1
        if trouble is not None:
            raise trouble
        wait = max(0.0, min(one.back_at for one in self._replicas) - time.monotonic())
        raise TryAgain("unreachable", f"none of {len(self._replicas)} servers is well", of_server=True, wait=wait)

    def _least_busy(self, tried: set[int]) -> _Replica | None:
        now = time.monotonic()
        well = [one for one in self._replicas if one.back_at <= now and id(one) not in tried]
        return min(well, key=lambda one: one.outstanding, default=None)


async def _see_that_it_is_well(api: Api) -> None:
    """vLLM's /health fails from the moment on at which its engine is known to be dead; the process may live on a while."""
    try:
        await api.fetch("/health", beside_v1=True)
    except TryAgain as trouble:
        raise TryAgain("unreachable", f"the server is not well: {trouble.reason}", of_server=True) from None
    except TeacherRefused:  # a gateway that hides it
        return
