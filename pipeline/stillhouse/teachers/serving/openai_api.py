"""Make one attempt at an OpenAI-compatible server, and classify its failures.

    api = OpenAiApi(endpoint)
    reply = await api.post("/chat/completions", {"model": ..., "messages": [...]})
    reply.data["choices"]

The `openai` package determines the form of a request (URL, authorization, organization) and provides its aiohttp transport.
Bodies are encoded and decoded by orjson as bytes, bypassing the client's typed parameters, responses and retries: these
cost three times as much as the request itself (docs/benchmarks.md). Every failure is raised as `AttemptFailed` or
`TeacherRefused`, or returned as a `Refusal`; the API key is redacted from every message.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from pydantic import Field, SecretStr

from stillhouse.errors import TeacherRefused
from stillhouse.inputs import urls
from stillhouse.settings import Settings
from stillhouse.teachers.base import AttemptFailed, Refusal
from stillhouse.teachers.serving.connection_errors import connection_error
from stillhouse.teachers.serving.environment import HEADER_VARIABLES, Proxy, find_proxy, proxy_error, read_header
from stillhouse.teachers.serving.error_bodies import ErrorBody, read_error
from stillhouse.teachers.serving.error_classes import classify_error
from stillhouse.teachers.serving.json_bodies import json_object
from stillhouse.teachers.serving.redaction import Redactor
from stillhouse.teachers.serving.retry_after import requested_pause, retry_after

if TYPE_CHECKING:
    import ssl

    import httpx2
    import openai

_MAX_QUOTED = 300  # most characters of a server's message in one of ours
NO_KEY = "none"  # the key sent to a server that needs none
_CONNECTIONS = 4096  # above any concurrency: the engine limits requests
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # variables that name certificates of the user's own
_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")  # the first line of an event stream (SSE)


@lru_cache(maxsize=4)
def _tls(trust_env: bool, *_certificates: str | None) -> ssl.SSLContext:
    """Return the TLS settings of the environment; reading the certificates takes 20 ms, so each is read once."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


class Timeouts(Settings):
    """Timeouts of an attempt, in seconds."""

    connect: float = Field(default=10, gt=0, description="seconds to connect")
    read: float = Field(default=300, gt=0, description="between two chunks of a response")
    total: float = Field(default=600, gt=0, description="seconds for the whole request")


@dataclass(frozen=True)
class Endpoint:
    """A server's address, key and timeouts. The key is a secret and is not shown in the repr."""

    base_url: str
    key: SecretStr
    timeouts: Timeouts
    direct: bool = False  # whether to bypass the proxies of the environment, for a server that this process started


@dataclass(frozen=True)
class Content:
    """The body of a response with status 200, not parsed."""

    body: bytes
    pause: float  # seconds until the next request may be sent, by the rate-limit headers


@dataclass(frozen=True)
class Reply:
    """A JSON object from a response with status 200."""

    data: Mapping[str, Any]
    pause: float


class OpenAiApi:
    """A client of one server, used from one event loop; the first request opens the connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._urls: dict[str, httpx2.URL] = {}

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply | Refusal:
        """Make one attempt and return the JSON object of the response.

        Raises:
            AttemptFailed: the attempt failed or the response is not a JSON object, and another attempt may succeed.
            TeacherRefused: the server answers no request with this key and model.
        """
        content = await self.fetch(path, body)
        if isinstance(content, Refusal):
            return content
        data = json_object(content.body)
        if data is None:
            self.raise_unreadable(content.body, "a body that is not a JSON object")
        return Reply(data, content.pause)

    async def fetch(
        self, path: str, body: Mapping[str, Any] | None = None, *, outside_v1: bool = False
    ) -> Content | Refusal:
        """Make one attempt and return the body of the response.

        Args:
            path: the path below the base URL.
            body: the JSON body to post; None for a GET request.
            outside_v1: whether the path is below the base URL without its `/v1`, as vLLM's management endpoints are.

        Raises:
            AttemptFailed: the attempt failed, and another may succeed.
            TeacherRefused: the server answers no request with this key and model.
        """
        import aiohttp
        import httpx2

        http, proxy = self._http, self._proxy
        try:
            request = self._request(path, body, outside_v1=outside_v1)
        except orjson.JSONEncodeError as error:
            return Refusal(
                "unencodable", f"the prompt has a character that cannot be encoded ({error}); nothing was sent"
            )
        try:
            async with asyncio.timeout(self._endpoint.timeouts.total):
                response = await http.send(request)
        except (httpx2.HTTPError, aiohttp.ClientError) as error:
            self._raise_connection_error(error, proxy)
        except ValueError as error:  # a status line or headers that cannot be decoded
            raise AttemptFailed(
                "malformed", f"a response that cannot be read ({self.sanitize(str(error))})", cost_usd=None
            ) from None
        except TimeoutError:
            total = self._endpoint.timeouts.total
            raise AttemptFailed("timeout", f"no answer in {total:g} s", overloaded=True, cost_usd=None) from None
        if response.status_code != 200:
            return self._handle_error_status(response)
        return Content(response.content, requested_pause(response.headers))

    def raise_unreadable(self, body: bytes, why: str) -> NoReturn:
        """Raise the error for a body with status 200 that cannot be read.

        Raises:
            TeacherRefused: the server streams its answers although the request does not ask for it.
            AttemptFailed: another attempt may get a readable answer.
        """
        text = self.sanitize(body.decode("utf-8", "replace"))
        if _STREAM.match(body):
            raise TeacherRefused(
                f"{self._endpoint.base_url} streams its answers although the request does not set `stream` ({text[:80]})",
                fix="use a server or gateway that can answer without streaming",
            )
        raise AttemptFailed("malformed", f"status 200 with {why}: {text}", cost_usd=None)

    async def close(self) -> None:
        """Close the connections, if any are open."""
        self.__dict__.pop("_proxy", None)
        http = self.__dict__.pop("_http", None)
        if http is not None:
            await http.aclose()

    @cached_property
    def _http(self) -> httpx2.AsyncClient:
        import httpx2
        import openai

        urls.check_base_url(self._endpoint.base_url, "the base URL", may_hold_secret=True)
        try:
            return openai.DefaultAioHttpClient(
                limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
                timeout=self._timeout,
                follow_redirects=False,  # send the key only to the URL of the recipe
                trust_env=not self._endpoint.direct,
                verify=_tls(not self._endpoint.direct, *(os.environ.get(name) for name in _CERTIFICATES)),
            )
        except (ValueError, httpx2.InvalidURL):
            raise proxy_error() from None

    @cached_property
    def _proxy(self) -> Proxy | None:
        return find_proxy(self._http, self._endpoint.base_url)

    @property
    def _described(self) -> str:
        """The server, and the proxy that requests go through, for messages."""
        proxy = self.__dict__.get("_proxy")
        return f"{self._endpoint.base_url} through {proxy}" if proxy else self._endpoint.base_url

    @cached_property
    def _timeout(self) -> httpx2.Timeout:
        import httpx2

        return httpx2.Timeout(self._endpoint.timeouts.read, connect=self._endpoint.timeouts.connect)

    def open_client(self) -> openai.AsyncOpenAI:
        """Return the package's own client, with the connections, key and headers of this one, and without retries."""
        import openai

        organization, project = (read_header(name) or None for name in HEADER_VARIABLES)
        return openai.AsyncOpenAI(
            api_key=self._endpoint.key.get_secret_value(),
            organization=organization,
            project=project,
            base_url=self._endpoint.base_url,
            max_retries=0,
            http_client=self._http,
        )

    @cached_property
    def _headers(self) -> httpx2.Headers:
        import httpx2

        client = self.open_client()
        given = {**client.default_headers, **client.auth_headers}
        sent = {name: value for name, value in given.items() if isinstance(value, str) and value}
        for name, value in sent.items():
            if not (value.isascii() and value.isprintable()):
                raise TeacherRefused(
                    f"the header {name} contains characters that cannot be sent; nothing was sent",
                    fix="copy its value again",
                )
        return httpx2.Headers(sent)

    def _request(self, path: str, body: Mapping[str, Any] | None, *, outside_v1: bool) -> httpx2.Request:
        """Build a request from parts parsed once: the client would parse URL and headers for every request."""
        import httpx2

        base = urls.without_v1(self._endpoint.base_url) if outside_v1 else self._endpoint.base_url
        url = self._urls.get(base + path) or self._urls.setdefault(base + path, httpx2.URL(urls.join_path(base, path)))
        method, content = ("GET", None) if body is None else ("POST", orjson.dumps(body))
        limits = {"timeout": self._timeout.as_dict()}
        return httpx2.Request(method, url, headers=self._headers, content=content, extensions=limits)

    def _raise_connection_error(self, error: Exception, proxy: Proxy | None) -> NoReturn:
        """Raise the error for a request that got no status: not sent, server not reached, or connection broken."""
        raise connection_error(
            error, self._endpoint.base_url, proxy, self._endpoint.timeouts.read, self.sanitize
        ) from None

    def _handle_error_status(self, response: httpx2.Response) -> Refusal:
        """Handle a response with an error status."""
        status = response.status_code
        if status < 400:
            location = self.sanitize(response.headers.get("location", ""))
            raise TeacherRefused(
                f"{self._described} returned {status} instead of an answer: {self.sanitize(response.text)}"
                f"{f' (it redirects to {location})' if location else ''}",
                fix="check teacher.options.base_url",
            )
        data = json_object(response.content) or {}
        error = read_error(data) or ErrorBody(str(data.get("message") or data.get("detail") or response.text))
        return self.classify(status, error, wait=retry_after(response.headers))

    def classify(self, status: int, error: ErrorBody, *, wait: float = 0.0, cost_usd: float | None = 0.0) -> Refusal:
        """Classify an error: it concerns this prompt, the server at this moment, or every request.

        Args:
            status: the status of the response; 200 for an error inside a response, whose code then gives the status.
            error: the parsed error body.
            wait: seconds to wait, as requested by the server.
            cost_usd: the cost of the attempt; None if it may have been billed and the cost is not known.

        Raises:
            AttemptFailed: the attempt failed, and another may succeed.
            TeacherRefused: the server answers no request with this key, model and settings.
        """
        detail = f"{self._described} returned {status}{' with an error' * (status == 200)}: {self.sanitize(error.text)}"
        return classify_error(error.status_of(status), error, detail, wait=wait, cost_usd=cost_usd)

    def sanitize(self, text: str) -> str:
        """Sanitize a server's text for a message: truncated, on one line, without the key."""
        return " ".join(self._redact(text).split())[:_MAX_QUOTED]

    @cached_property
    def _redact(self) -> Redactor:
        key = self._endpoint.key.get_secret_value()
        return Redactor("" if key == NO_KEY else key)
