"""The stand-in server of tests/stand_in.py with a timer: when the first request arrived, and when the last answer left.

    python -m benchmarks.server --port 8009 --latency 0.05

`GET /span` returns both, in seconds of `time.time`, and the number of answers charged for. Benchmarks poll it often, and
the answer of `/stats` would be too large for that. Nothing else differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from tests.stand_in import StandIn
from tests.stand_in_batches import Batches

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def timed(server: StandIn) -> web.Application:
    first: float | None = None
    last: float | None = None

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal first, last
        if request.method != "POST":
            return await handler(request)
        began = time.time()
        response = await handler(request)  # an error (curator's probe of limits) raises, and does not count
        first = first or began
        last = time.time()
        return response

    async def span(request: web.Request) -> web.Response:
        return web.json_response({"first": first, "last": last, "billed": server.stats.billed_answers})

    server.app.middlewares.append(note)
    server.app.router.add_get("/span", span)
    return server.app


def main() -> None:
    parser = argparse.ArgumentParser(description="The stand-in, with a stop-watch.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before an answer")
    parser.add_argument("--batches", type=json.loads, default={}, help="arguments of tests.stand_in_batches.Batches")
    given = parser.parse_args()
    server = StandIn(latency=given.latency, batches=Batches(**given.batches))
    with suppress(KeyboardInterrupt):
        web.run_app(timed(server), host="127.0.0.1", port=given.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
