"""One attempt at an OpenAI-compatible server, and what its failures mean.

    api = OpenAiApi(endpoint)
    reply = await api.post("/chat/completions", {"model": ..., "messages": [...]})
    reply.data["choices"]

The `openai` package says what a request looks like (URL, authorization, organisation) and carries it on its aiohttp
transport. Bodies go out and come in as bytes through orjson, past the client's typed parameters, answers and retries: those
cost three times as much as the request itself (docs/benchmarks.md). Whatever goes wrong is raised as `TryAgain` or
`TeacherRefused`, or comes back as a `Refusal`; the API key is cut out of every message.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from pydantic import Field, SecretStr

from pipeline.errors import TeacherRefused
from pipeline.serving.error_bodies import ErrorBody, read_error
from pipeline.settings import Settings
from pipeline.teachers.base import Refusal, TryAgain

if TYPE_CHECKING:
    import httpx2

_SHOWN = 300  # characters of a server's words in a message
NO_KEY = "none"  # what a server that needs no key is sent
_CONNECTIONS = 4096  # more than any concurrency: waiting is the engine's to decide
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TOO_LONG = re.compile(
    r"context.?length|maximum context|too long|too many tokens|max_model_len|reduce the length", re.I
)
_POLICY = re.compile(r"content.?policy|content.?filter|safety|moderation|responsible.?ai", re.I)
_OF_EVERYBODY = re.compile(  # a 400 that every prompt would get, where no code says so
    r"model_not_found|invalid_api_key|unrecognized request argument|api.?key.{0,30}(?:not valid|invalid|expired|not found)"
    r"|(?:incorrect|invalid|missing|no) api.?key"
    r"|(?:credit|account) balance|insufficient (?:balance|credit|fund|quota)|(?:out of|not enough) credits",
    re.I,
)
_STOP = {
    401: "the key is not accepted",
    403: "the key may not do this",
    404: "not found",
    405: "the URL takes no such request",
    407: "a proxy wants to know who asks",
}
_OF_A_PROMPT = {400, 413, 422}  # the only statuses that may say something of one prompt
_PASSING = {408, 409, 423, 424, 425}  # another attempt may get an answer
_BUSY = {429, 502, 503, 529}  # of the server, whatever the prompt
_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")  # the first line of a stream of events


class Timeouts(Settings):
    """Seconds after which an attempt is given up."""

    connect: float = Field(default=10, gt=0)
    read: float = Field(default=300, gt=0)  # between two pieces of an answer
    total: float = Field(default=600, gt=0)


@dataclass(frozen=True)
class Endpoint:
    """Where the server is, and how long it may take. The key is a secret and shows in no repr."""

    base_url: str
    key: SecretStr
    timeouts: Timeouts


@dataclass(frozen=True)
class Content:
    """What came with status 200, unread."""

    body: bytes
    pause: float  # seconds in which the server wants no further request, by its rate-limit headers


@dataclass(frozen=True)
class Reply:
    """A JSON object that came with status 200."""

    data: Mapping[str, Any]
    pause: float


class OpenAiApi:
    """Used from one event loop; the connection is opened by the first request."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._urls: dict[str, httpx2.URL] = {}

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply | Refusal:
        """One attempt, and the JSON object that it gave.

        Raises:
            TryAgain, TeacherRefused: as `fetch` does; what is no JSON object is tried again too.
        """
        content = await self.fetch(path, body)
        if isinstance(content, Refusal):
            return content
        data = _json_object(content.body)
        if data is None:
            self.unreadable(content.body, "what is no JSON object")
        return Reply(data, content.pause)

    async def fetch(
        self, path: str, body: Mapping[str, Any] | None = None, *, beside_v1: bool = False
    ) -> Content | Refusal:
        """One attempt.

        Args:
            path: below the base URL.
            body: what is posted; None to get.
            beside_v1: the path is not below the base URL but below that without its `/v1`, as vLLM's own ones are.

        Raises:
            TryAgain: it gave nothing, another may.
            TeacherRefused: the server answers nobody with this key and model.
        """
        import aiohttp
        import httpx2

        try:
            async with asyncio.timeout(self._endpoint.timeouts.total):
                response = await self._http.send(self._request(path, body, beside_v1=beside_v1))
        except (httpx2.HTTPError, aiohttp.ClientError) as error:
            self._lost(error)
        except TimeoutError:
            total = self._endpoint.timeouts.total
            raise TryAgain("timeout", f"no answer in {total:g} s", overloaded=True, cost_usd=None) from None
        if response.status_code != 200:
            return self._refused(response)
        return Content(response.content, _pause(response.headers))

    def unreadable(self, body: bytes, why: str) -> NoReturn:
        """What a body with status 200 means that is no answer.

        Raises:
            TeacherRefused: the server streams its answers, whatever it is asked.
            TryAgain: another attempt may get an answer.
        """
        said = self.shown(body.decode("utf-8", "replace"))
        if _STREAM.match(body):
            raise TeacherRefused(
                f"{self._endpoint.base_url} streams its answers, and is read as a whole ({said[:80]}): take a server or a "
                "gateway that answers requests without `stream`."
            )
        raise TryAgain("malformed", f"status 200 with {why}: {said}", cost_usd=None)

    async def close(self) -> None:
        """Close the connections, if there are any."""
        http = self.__dict__.pop("_http", None)
        if http is not None:
            await http.aclose()

    @cached_property
    def _http(self) -> httpx2.AsyncClient:
        import httpx2
        import openai

        return openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            timeout=self._timeout,
            follow_redirects=False,  # the key goes where the recipe says, and nowhere else
        )

    @cached_property
    def _timeout(self) -> httpx2.Timeout:
        import httpx2

        return httpx2.Timeout(self._endpoint.timeouts.read, connect=self._endpoint.timeouts.connect)

    @cached_property
    def _headers(self) -> httpx2.Headers:
        import httpx2
        import openai

        key = self._endpoint.key.get_secret_value()
        client = openai.AsyncOpenAI(
            api_key=key, base_url=self._endpoint.base_url, max_retries=0, http_client=self._http
        )
        given = {**client.default_headers, **client.auth_headers}
        return httpx2.Headers({name: value for name, value in given.items() if isinstance(value, str)})

    def _request(self, path: str, body: Mapping[str, Any] | None, *, beside_v1: bool) -> httpx2.Request:
        """Built from parts that are parsed once: the client's own way parses URL and headers anew each time."""
        import httpx2

        base = self._endpoint.base_url.removesuffix("/v1") if beside_v1 else self._endpoint.base_url
        url = self._urls.get(base + path) or self._urls.setdefault(base + path, httpx2.URL(base + path))
        method, content = ("GET", None) if body is None else ("POST", orjson.dumps(body))
        limits = {"timeout": self._timeout.as_dict()}
        return httpx2.Request(method, url, headers=self._headers, content=content, extensions=limits)

    def _lost(self, error: Exception) -> NoReturn:
        """No status came: the server was not reached, or the connection broke, perhaps in mid-answer."""
        import aiohttp
        import httpx2

        # httpx's name for it says too little: a connection that broke after the request was sent is a ConnectTimeout too.
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        said = self.shown(str(cause)) or type(cause).__name__
        if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            detail = f"{self._endpoint.base_url} cannot be reached ({said})"
            raise TryAgain("unreachable", detail, of_server=True, overloaded=True) from None
        if isinstance(error, httpx2.ReadTimeout):
            read = self._endpoint.timeouts.read
            raise TryAgain("timeout", f"no answer in {read:g} s", overloaded=True, cost_usd=None) from None
        raise TryAgain("cut-off", f"the connection broke before the answer was whole ({said})", cost_usd=None) from None

    def _refused(self, response: httpx2.Response) -> Refusal:
        """What an error status means."""
        status = response.status_code
        if status < 400:
            moved = self.shown(response.headers.get("location", ""))
            raise TeacherRefused(
                f"{self._endpoint.base_url} said {status}: {self.shown(response.text)}, which is no answer"
                f"{f' but leads to {moved}' if moved else ''}. Check teacher.options.base_url."
            )
        data = _json_object(response.content) or {}
        error = read_error(data) or ErrorBody(str(data.get("message") or data.get("detail") or response.text))
        return self.judge(status, error, wait=_retry_after(response.headers))

    def judge(self, status: int, error: ErrorBody, *, wait: float = 0.0, cost_usd: float | None = 0.0) -> Refusal:
        """What an error means: of this prompt, of the server just now, or of everybody.

        Args:
            status: the answer's; 200 for an error within an answer, which is the status that its code says.
            error: what the body says.
            wait: seconds that the server asks to wait.
            cost_usd: what the attempt cost; None where it may have been billed and nobody knows.

        Raises:
            TryAgain: it gave nothing, another attempt may.
            TeacherRefused: the server answers nobody with this key, model and settings.
        """
        said, status = status, error.status_of(status)
        told = f"{self._endpoint.base_url} said {said}{' with an error' * (said == 200)}: {self.shown(error.words)}"
        if status == 403 and _POLICY.search(error.words):
            return Refusal("policy", told, suspect="403")
        if status == 402 or (status == 429 and re.search("insufficient_quota|billing", error.words)):
            raise TeacherRefused(f"{told} (the account cannot pay). What was answered is kept: pay in, and run again.")
        if status in _STOP:
            raise TeacherRefused(f"{told} ({_STOP[status]}). Check teacher.model, the base URL and the API key.")
        if status in _BUSY:
            overloaded = status != 502
            raise TryAgain("overloaded", told, of_server=True, overloaded=overloaded, wait=wait, cost_usd=cost_usd)
        if status == 504:  # a gateway gave up; the model behind it may have gone on
            raise TryAgain("timeout", told, overloaded=True, wait=wait, cost_usd=None)
        if status >= 500 or status in _PASSING:
            raise TryAgain("server-error", told, wait=wait, cost_usd=cost_usd)
        if error.is_of_settings or _OF_EVERYBODY.search(error.words):
            raise TeacherRefused(
                f"{told}. No prompt can be answered so: check teacher.options, label, the API key and the account."
            )
        if status == 200:
            raise TryAgain("malformed", told, cost_usd=cost_usd)
        if status not in _OF_A_PROMPT:
            raise TeacherRefused(f"{told}, a status that says nothing of the prompt. Check teacher.options.base_url.")
        reason = (
            "too-long" if _TOO_LONG.search(error.words) else "policy" if _POLICY.search(error.words) else "bad-request"
        )
        return Refusal(reason, told, suspect=str(status))

    def shown(self, text: str) -> str:
        """What may be told of a server's words: short, on one line, without the key."""
        key = self._endpoint.key.get_secret_value()
        hidden = text.replace(key, "***") if len(key) > 3 and key != NO_KEY else text
        return re.sub(r"\bsk-[\w*-]{6,}", "***", " ".join(hidden.split()))[:_SHOWN]


def _json_object(content: bytes) -> Mapping[str, Any] | None:
    """The object in a body, or None. An answer was paid for: NaN, lone surrogates and invalid UTF-8 are tolerated."""
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            data = _encodable(json.loads(content.decode("utf-8", "replace")))
        except (ValueError, RecursionError):
            return None
    return data if isinstance(data, dict) else None


def error_in(body: bytes) -> ErrorBody | None:
    """The error that the bytes of an answer tell of; None where they tell of none, or are no JSON object."""
    data = _json_object(body)
    return read_error(data) if data is not None else None


def _encodable(value: Any) -> Any:
    """A JSON value whose texts can all be written as UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    return value


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds, from `retry-after-ms`, `retry-after` as seconds or a date; 0 where the server names none."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if after := headers.get("retry-after"):
            return max(0.0, float(after) if after[0].isdigit() else _until(after))
    except (ValueError, TypeError):
        return 0.0
    return _pause(headers)


def _until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def _pause(headers: httpx2.Headers) -> float:
    """Seconds until `x-ratelimit-*` allows another request; 0 where something remains."""
    wait = 0.0
    for what in ("requests", "tokens"):
        remaining = headers.get(f"x-ratelimit-remaining-{what}")
        if remaining is not None and re.fullmatch(r"\s*(-[\d.]+|0+(\.0*)?)\s*", remaining):
            wait = max(wait, _duration(headers.get(f"x-ratelimit-reset-{what}", "")))
    return wait


def _duration(text: str) -> float:
    """Seconds of "1s", "6m0s", "120ms" or "2.5"."""
    parts = _DURATION.findall(text)
    if parts:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        return 0.0
