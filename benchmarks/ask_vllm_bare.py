"""The baseline client for a vLLM server: a bare loop of aiohttp requests that decodes the answers with orjson.

    python -m benchmarks.ask_vllm_bare URL BODIES CONCURRENCY

BODIES is a JSON lines file with exactly the requests that Stillhouse sends. Timed: from before the first request until the
last answer is decoded.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson


async def ask_all(base_url: str, bodies: list[bytes], concurrency: int) -> int:
    """Send all requests; return the number of generated tokens."""
    waiting = iter(bodies)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"}) as session:
        url = f"{base_url}/completions"
        return sum(await asyncio.gather(*(_work(session, url, waiting) for _ in range(concurrency))))


async def _work(session: aiohttp.ClientSession, url: str, waiting: Iterator[bytes]) -> int:
    tokens = 0
    for body in waiting:
        async with session.post(url, data=body) as response:
            answer = orjson.loads(await response.read())
        tokens += len(answer["choices"][0]["token_ids"])
    return tokens


def main() -> None:
    base_url, file, concurrency = sys.argv[1:]
    bodies = Path(file).read_bytes().splitlines()
    began = time.perf_counter()
    tokens = asyncio.run(ask_all(base_url, bodies, int(concurrency)))
    print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
