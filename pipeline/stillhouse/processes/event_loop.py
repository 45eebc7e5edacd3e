"""Run a coroutine from synchronous code, even inside a running event loop (Jupyter)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_coroutine(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine, and return its result or raise its exception.

    If this thread already runs an event loop, as every cell of a notebook does, the coroutine runs in an event loop of
    another thread, and this thread waits for it. An interrupt of this thread cancels the coroutine.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    context = contextvars.copy_context()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Result]]] = []

    async def cancellable() -> Result:
        task = asyncio.ensure_future(coroutine)
        loops.append((asyncio.get_running_loop(), task))
        return await task

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(context.run, asyncio.run, cancellable())
        try:
            return future.result()
        except BaseException:
            if not future.done() and loops:
                loop, task = loops[0]
                loop.call_soon_threadsafe(task.cancel)
            raise
