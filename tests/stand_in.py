"""A server that speaks the OpenAI API, does to its clients what real ones do, and counts what it billed.

    python -m tests.stand_in --port 8009 --latency 0.05        # alone, for benchmarks; GET /stats tells what it counted

    with running_stand_in() as server:                         # in a thread, for tests
        ... server.base_url, server.stats

What it does is written in the prompt: words that begin with `!` are followed one an attempt, and the last attempt is
answered. `Name a colour. !429:0.2 !reset` is refused once with `retry-after: 0.2`, once cut off in mid-answer, then
answered. `!hang*` does the same on every attempt. So a test is deterministic whatever order its requests arrive in.

| word | what happens | billed |
| --- | --- | --- |
| `429`, `429:S`, `429ms:N`, `503:S` | too many requests: bare, with `retry-after: S`, with `retry-after-ms: N` | no |
| `quota` | 429 with code insufficient_quota | no |
| `408` `409` `425` `500` `502` `503` `504` `529` | that status | no |
| `401` `403` `404` | that status | no |
| `moved` | 308, to another host | no |
| `key400` `key401` `key500` `key200` | that status with an error that repeats the API key | no |
| `400long` `400policy` `400` | context_length_exceeded, content_policy_violation, another | no |
| `reset` `truncated` | the connection is torn in mid-answer; the body ends before its content-length | yes |
| `gone` `garbage` | the connection is closed before any byte; what comes is no HTTP | yes |
| `html` `halfjson` `nochoices` | status 200 with a page, half an answer, an answer without choices | yes |
| `null` `empty` | `content: null`, `content: ""` | yes |
| `length` `filter` | an answer with finish_reason length, content_filter | yes |
| `nousage` `reasoning` `logprobs` | an answer without usage, with reasoning, with token log-probabilities | yes |
| `remaining:S` | an answer whose headers say that no request remains for S seconds | yes |
| `hang` `slow` | no answer for 60 s; an answer 20 times slower than the others | yes |
| `drip` | an answer that comes in small pieces and never ends | yes |
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.stand_in_anthropic import MessageBatches
from tests.stand_in_batches import Batches

_WORD = re.compile(r"!([\w.:]+)(\*?)")
PROMPT_TOKENS, COMPLETION_TOKENS = 20, 10  # of every answer, by its usage


@dataclass
class Stats:
    """What the server saw and what it would charge for."""

    requests: int = 0  # that reached it
    billed: Counter[str] = field(default_factory=Counter)  # last user message -> answers it charged for
    seen: Counter[str] = field(default_factory=Counter)  # last user message -> attempts
    at_once: int = 0
    most_at_once: int = 0
    bodies: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1000))  # of the last requests
    keys: set[str] = field(default_factory=set)  # authorization headers
    queries: set[str] = field(default_factory=set)  # of the URLs
    arrivals: list[tuple[float, str]] = field(default_factory=list)  # time.monotonic() and last user message of each

    @property
    def billed_answers(self) -> int:
        return sum(self.billed.values())


@dataclass(frozen=True)
class Canned:
    """One response to every request, after some that were answered."""

    status: int
    body: str
    after: int = 0
    content_type: str = "application/json"


class StandIn:
    """The application; `capacity` is how many requests it bears at once before it says 429."""

    def __init__(
        self,
        *,
        latency: float = 0.0,
        together: int = 1,
        capacity: int | None = None,
        text: str = "Blue, I think.",
        canned: Canned | None = None,
        batches: Batches | None = None,
        messages: MessageBatches | None = None,
    ) -> None:
        self.latency = latency
        self.together = together  # requests that must have been there at once before any is answered
        self.canned = canned  # what every request gets, once some were answered
        self.capacity = capacity
        self.text = text
        self.stats = Stats()
        self.app = web.Application(client_max_size=1 << 28)
        self.app.router.add_post("/v1/chat/completions", self._chat)
        self.app.router.add_post("/v1/completions", self._completions)
        self.app.router.add_get("/stats", self._stats)
        self.batches = batches or Batches()
        self.app.router.add_routes(self.batches.routes(self._line))
        self.messages = messages or MessageBatches()
        self.app.router.add_routes(self.messages.routes(self._line))

    async def _stats(self, request: web.Request) -> web.Response:
        stats = self.stats
        repeated = {prompt: count for prompt, count in stats.billed.items() if count > 1}
        return web.json_response(
            {
                "requests": stats.requests,
                "billed": stats.billed_answers,
                "prompts": len(stats.billed),
                "repeated": repeated,
                "most_at_once": stats.most_at_once,
                "jobs": len(self.batches.jobs),
                "jobs_submitted_twice": sum(count - 1 for count in self.batches.submitted.values()),
                "files": len(self.batches.files),
            }
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._counted(request, body, str(body["messages"][-1]["content"]))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._counted(request, body, str(body["prompt"]))

    async def _counted(self, request: web.Request, body: dict[str, Any], prompt: str) -> web.StreamResponse:
        stats = self.stats
        stats.requests += 1
        stats.arrivals.append((time.monotonic(), prompt))
        stats.at_once += 1
        stats.most_at_once = max(stats.most_at_once, stats.at_once)
        stats.keys.add(request.headers.get("authorization", ""))
        stats.queries.add(request.query_string)
        stats.bodies.append(body)
        try:
            if self.capacity is not None and stats.at_once > self.capacity:
                return _error(429, "rate_limit_exceeded", "too many at once")
            return await self._follow(request, body, prompt)
        finally:
            stats.at_once -= 1

    async def _line(self, url: str, body: dict[str, Any], prompt: str) -> tuple[int, dict[str, Any]] | None:
        """Answer one line of a batch job, as its prompt says; words that break a connection leave it without a result."""
        attempt = self.stats.seen[prompt]
        self.stats.seen[prompt] += 1
        words = _WORD.findall(prompt)
        word = "ok"
        if words and (words[-1][1] or attempt < len(words)):
            word = words[min(attempt, len(words) - 1)][0]
        refused = _refusal(word, "")
        if refused is not None:
            assert refused.text is not None
            return refused.status, json.loads(refused.text)
        if word in {"gone", "reset", "garbage", "truncated", "hang"}:
            return None
        self.stats.billed[prompt] += 1
        return 200, self._answer(word, body, chat=url.endswith("/chat/completions"))

    async def _follow(self, request: web.Request, body: dict[str, Any], prompt: str) -> web.StreamResponse:
        if self.canned is not None and self.stats.billed_answers >= self.canned.after:
            return web.Response(status=self.canned.status, text=self.canned.body, content_type=self.canned.content_type)
        attempt = self.stats.seen[prompt]
        self.stats.seen[prompt] += 1
        words = _WORD.findall(prompt)
        word = "ok"
        if words and (words[-1][1] or attempt < len(words)):
            word = words[min(attempt, len(words) - 1)][0]
        refused = _refusal(word, request.headers.get("authorization", ""))
        if refused is not None:
            return refused
        while self.stats.most_at_once < self.together:
            await asyncio.sleep(0.02)
        await asyncio.sleep(60 if word == "hang" else self.latency * 20 if word == "slow" else self.latency)
        self.stats.billed[prompt] += 1
        if word == "html":
            return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html")
        whole = json.dumps(self._answer(word, body, chat=request.path.endswith("/chat/completions"))).encode()
        if word == "halfjson":
            return web.Response(body=whole[: len(whole) // 2], content_type="application/json")
        if word in {"reset", "truncated"}:
            return await _torn(request, whole, abruptly=word == "reset")
        if word in {"gone", "garbage"}:
            return _no_http(request, b"" if word == "gone" else b"220 mail.example.org ready\r\n\r\n")
        if word == "drip":
            return await _dripping(request)
        name, _, seconds = word.partition(":")
        limits = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{seconds}s"}
        headers = limits if name == "remaining" else None
        return web.Response(body=whole, content_type="application/json", headers=headers)

    def _answer(self, word: str, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        text: str | None = {"null": None, "empty": ""}.get(word, self.text)
        finish = {"length": "length", "filter": "content_filter"}.get(word, "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
            if word == "reasoning":
                choice["message"]["reasoning_content"] = "Skies are blue."
            if word == "logprobs" or body.get("logprobs"):
                choice["logprobs"] = {"content": [_token("Blue"), _token(".")]}
        else:
            choice["text"] = text
        answer: dict[str, Any] = {
            "id": "stand-in",
            "object": "chat.completion" if chat else "text_completion",
            "model": body["model"],
            "system_fingerprint": "fp_stand_in",
            "choices": [] if word == "nochoices" else [choice],
        }
        if word != "nousage":
            total = PROMPT_TOKENS + COMPLETION_TOKENS
            answer["usage"] = {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": total,
            }
        return answer


def _token(text: str) -> dict[str, Any]:
    other = {"token": "Red", "logprob": -1.5, "bytes": list(b"Red")}
    own = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
    return {**own, "top_logprobs": [own, other]}


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


def _refusal(word: str, authorization: str) -> web.Response | None:
    """The answer to a word that refuses, or None where there is something to bill."""
    name, _, amount = word.partition(":")
    if name in {"429", "429ms"} or (name == "503" and amount):
        header = "retry-after-ms" if name == "429ms" else "retry-after"
        return _error(int(name[:3]), "rate_limit_exceeded", "slow down", {header: amount} if amount else None)
    if name == "quota":
        return _error(429, "insufficient_quota", "you exceeded your current quota")
    if name == "400long":
        return _error(400, "context_length_exceeded", "maximum context length is 4096 tokens")
    if name == "400policy":
        return _error(400, "content_policy_violation", "rejected by our safety system")
    if name == "moved":
        return web.Response(status=308, headers={"location": "http://127.0.0.2:9/v1"})
    if name in {"key200", "key400", "key401", "key500"}:
        return _error(int(name[3:]), f"http_{name[3:]}", f"you came with {authorization}")
    if name.isdigit():
        return _error(int(name), f"http_{name}", f"status {name}")
    return None


async def _torn(request: web.Request, whole: bytes, *, abruptly: bool) -> web.StreamResponse:
    """Send half an answer, then tear the connection."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    transport = request.transport
    assert transport is not None
    if abruptly:
        transport.abort()
    else:
        transport.close()
    return response


def _no_http(request: web.Request, said: bytes) -> web.Response:
    """Say something that is no HTTP, or nothing, and hang up."""
    assert request.transport is not None
    request.transport.write(said)
    request.transport.close()
    return web.Response()


async def _dripping(request: web.Request) -> web.StreamResponse:
    """White space, which JSON may begin with, a byte at a time."""
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    for _ in range(1200):
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


class RunningStandIn:
    """A stand-in that listens in a thread; `stop` and `start` are a server that dies and returns on the same port."""

    def __init__(self, server: StandIn, port: int = 0) -> None:
        self.server = server
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def stats(self) -> Stats:
        return self.server.stats

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(timeout=10)

    def stop(self) -> None:
        """Every connection is torn, and new ones are refused."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(timeout=10)

    async def _start(self) -> None:
        self._runner = web.AppRunner(self.server.app, handler_cancellation=True, shutdown_timeout=0.01)
        # An application is frozen once it has run: a server that returns is a new one over the same counts.
        fresh = StandIn(
            latency=self.server.latency,
            together=self.server.together,
            capacity=self.server.capacity,
            text=self.server.text,
            canned=self.server.canned,
            batches=self.server.batches,
            messages=self.server.messages,
        )
        fresh.stats = self.server.stats
        self.server = fresh
        self._runner = web.AppRunner(fresh.app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


@contextmanager
def running_stand_in(**settings: Any) -> Iterator[RunningStandIn]:
    """A stand-in on a free port of the loopback; keyword arguments are those of `StandIn`."""
    running = RunningStandIn(StandIn(**settings))
    running.start()
    try:
        yield running
    finally:
        running.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server for benchmarks.")
    parser.add_argument("--port", type=int, default=8009)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before an answer")
    parser.add_argument("--capacity", type=int, default=None, help="requests at once before it says 429")
    arguments = parser.parse_args()
    server = StandIn(latency=arguments.latency, capacity=arguments.capacity)
    with suppress(KeyboardInterrupt):
        web.run_app(server.app, host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
