"""Processor time of one request, sent through more and more layers of the `openai` package.

Each way sends the same request to a stand-in server again and again, 128 in flight, from this process; the figure is the
processor time of this process per request. The ways alternate over several rounds, and each round starts with a different
one. Stillhouse sends requests with `OpenAiApi`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import aiohttp
import httpx2
import openai
import orjson
from pydantic import SecretStr

from benchmarks.shared import in_turn, measured_on, scratch, serving, table, versions_of
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Timeouts

_AT_ONCE = 128
_LATENCY = 0.05
_BODY: dict[str, Any] = {
    "model": "stand-in",
    "messages": [{"role": "user", "content": "Name a colour."}],
    "max_tokens": 10,
    "temperature": 0.7,
}

Ask = Callable[[], Awaitable[object]]


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    requests, rounds = (300, 1) if small else (2000, 5)
    with scratch() as folder, serving(_LATENCY, folder / "server.txt") as server:
        spent = asyncio.run(_measure(server.base_url, requests, rounds))
    rows = [[name, f"{median(times) * 1e6:,.0f}"] for name, times in spent.items()]
    return "\n\n".join(
        [
            f"Processor time of one request, median of {rounds} rounds of {requests:,}, {_AT_ONCE} at once:",
            table(["way", "microseconds"], rows),
            measured_on(versions_of("openai", "httpx2", "aiohttp", "orjson")),
        ]
    )


async def _measure(base_url: str, requests: int, rounds: int) -> dict[str, list[float]]:
    """Return this process's processor seconds per request, by way and round."""
    http = openai.DefaultAioHttpClient()
    client = openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0, http_client=http)
    api = OpenAiApi(Endpoint(base_url, SecretStr("none"), Timeouts()))
    url = f"{base_url}/chat/completions"
    json_type = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=json_type) as session:

        async def bare() -> object:
            async with session.post(url, data=orjson.dumps(_BODY)) as answer:
                return orjson.loads(await answer.read())

        async def raw_bytes() -> object:
            options: Any = {"headers": json_type}
            answer = await client.post(
                "/chat/completions", content=orjson.dumps(_BODY), cast_to=httpx2.Response, options=options
            )
            return orjson.loads(answer.content)

        async def raw_response() -> object:
            return orjson.loads((await client.chat.completions.with_raw_response.create(**_BODY)).content)

        ways: dict[str, Ask] = {
            "aiohttp alone": bare,
            "`OpenAiApi`: the `openai` package's headers and aiohttp transport, orjson": lambda: api.post(
                "/chat/completions", _BODY
            ),
            "`AsyncOpenAI.post`, bytes out and in": raw_bytes,
            "`AsyncOpenAI...with_raw_response.create`": raw_response,
            "`AsyncOpenAI...create`, as its page shows it": lambda: client.chat.completions.create(**_BODY),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, ask in in_turn(ways.items(), number):
                spent[name].append(await _spent(ask, requests))
    await api.close()
    await client.close()
    return spent


async def _spent(ask: Ask, requests: int) -> float:
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await ask()

    began = time.process_time()
    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return (time.process_time() - began) / requests
