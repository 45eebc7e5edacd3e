"""The baseline client: a bare loop of aiohttp requests that keeps the answers in memory.

It has no journal, retries, rate limits or dataset. It uses orjson, and `concurrency` workers that take prompts from one
iterator. Timed: from before the first request until the last answer is decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import aiohttp
import orjson

from benchmarks.asking import MAX_TOKENS, MODEL, TEMPERATURE, task_from_arguments, tell


async def ask_all(base_url: str, prompts: list[str], concurrency: int) -> list[str]:
    answers = [""] * len(prompts)
    waiting = iter(enumerate(prompts))
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"}) as session:
        url = f"{base_url}/chat/completions"
        await asyncio.gather(*(_work(session, url, waiting, answers) for _ in range(concurrency)))
    return answers


async def _work(
    session: aiohttp.ClientSession, url: str, waiting: Iterator[tuple[int, str]], answers: list[str]
) -> None:
    for place, prompt in waiting:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
        }
        async with session.post(url, data=orjson.dumps(body)) as response:
            answer = orjson.loads(await response.read())
        answers[place] = answer["choices"][0]["message"]["content"]


def main() -> None:
    task = task_from_arguments()
    prompts = task.prompts
    began = time.perf_counter()
    answers = asyncio.run(ask_all(task.base_url, prompts, task.concurrency))
    seconds = time.perf_counter() - began
    tell(rows=sum(map(bool, answers)), seconds=seconds, packages=["aiohttp", "orjson"])


if __name__ == "__main__":
    main()
