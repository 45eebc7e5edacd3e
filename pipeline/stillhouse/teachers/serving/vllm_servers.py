"""The vLLM servers of one model: replicas that already run, or one server that is started and restarted here.

    servers = VllmServers(Expected(files, served_name, k), check, base_urls=[...], serve=None, ...)
    await servers.prepare(progress)
    content = await servers.fetch(body, check_health=False)

Nothing is started or connected before it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import SecretStr

from stillhouse.errors import RecipeError
from stillhouse.progress import Progress
from stillhouse.teachers.base import Finding, Refusal
from stillhouse.teachers.serving.check import CheckSettings, Expected, require, run_checks
from stillhouse.teachers.serving.environment import read_key
from stillhouse.teachers.serving.json_bodies import error_in
from stillhouse.teachers.serving.openai_api import NO_KEY, Content, Endpoint, OpenAiApi, Timeouts
from stillhouse.teachers.serving.replicas import Replicas
from stillhouse.teachers.serving.vllm_server import ServeSettings, VllmServer


class VllmServers:
    """The servers behind one `fetch`; use it from one event loop."""

    def __init__(
        self,
        expected: Expected,
        check: CheckSettings,
        *,
        base_urls: Sequence[str],
        serve: ServeSettings | None,
        api_key_env: str,
        timeouts: Timeouts,
    ) -> None:
        self._expected = expected
        self._check = check
        self._base_urls = base_urls
        self._serve = serve
        self._api_key_env = api_key_env
        self._timeouts = timeouts
        self._starting = asyncio.Lock()
        self._progress: Progress | None = None
        self.window = 0  # the servers' smallest context window in tokens, set by `prepare`

    async def prepare(self, progress: Progress) -> None:
        """Start the server of `serve`, if set, and check every server.

        Raises:
            TeacherUnavailable: the server did not start, or cannot be reached.
            TeacherRefused: a check failed.
        """
        self._progress = progress
        await self.ensure_running()
        for api in self._apis:
            found = await require(api, self._expected, self._check, progress)
            self.window = min(self.window or found.window, found.window)

    async def check(self, progress: Progress) -> Sequence[Finding]:
        """Start the server of `serve`, if set, and run every check on every server."""
        self._progress = progress
        await self.ensure_running()
        checked_servers = [await run_checks(api, self._expected, self._check, progress) for api in self._apis]
        return [finding for checked in checked_servers for finding in checked.findings]

    async def start(self, progress: Progress) -> str:
        """Start the server of `serve`, and return its base URL.

        Raises:
            RecipeError: `serve` is not set.
            TeacherUnavailable: the server did not start.
        """
        if self._server is None:
            raise RecipeError(
                "it is not set, so there is no server to start",
                setting="teacher.options.serve",
                fix="set it, for instance to {dtype: auto}, instead of base_urls",
            )
        await self._server.start(progress)
        return self._server.base_url

    async def ensure_running(self) -> None:
        """Start the server of `serve` if it is not running."""
        if self._server is None or self._server.running:
            return
        async with self._starting:
            if not self._server.running:
                await self._server.start(*([self._progress] if self._progress else []))

    async def fetch(self, body: Mapping[str, Any], *, check_health: bool) -> Content | Refusal:
        """Post a body to /v1/completions of the least busy server; see `Replicas.fetch`."""
        return await self._replicas.fetch("/completions", body, check_health=check_health)

    def handle_unreadable(self, body: bytes, why: ValueError) -> Refusal:
        """Handle a response that cannot be parsed: classify the error it reports, if any."""
        api = self._apis[0]  # all servers get the same requests and the same key
        error = error_in(body)
        return (
            api.classify(200, error, cost_usd=None)
            if error
            else api.raise_unreadable(body, f"a response that cannot be read ({why})")
        )

    async def close(self) -> None:
        """Close the connections, and stop the server if one was started."""
        for api in self.__dict__.get("_apis", ()):
            await api.close()
        if (server := self.__dict__.get("_server")) is not None:  # absent or None if no server was created
            await asyncio.to_thread(server.stop)

    @cached_property
    def _server(self) -> VllmServer | None:
        if self._serve is None:
            return None
        files, k = self._expected.files, self._expected.k
        model = str(files.folder.absolute()) if files.revision is None else files.name
        return VllmServer(self._serve, model, self._expected.served_name, files.revision, max_logprobs=max(20, k or 0))

    @cached_property
    def _apis(self) -> list[OpenAiApi]:
        urls = [self._server.base_url] if self._server else self._base_urls
        key = read_key(self._api_key_env) or SecretStr(NO_KEY)
        direct = self._server is not None
        return [OpenAiApi(Endpoint(url, key, self._timeouts, direct)) for url in urls]

    @cached_property
    def _replicas(self) -> Replicas:
        return Replicas(self._apis)
