"""Two workers of a work pool compared with one, on the same job and the same stand-in server.

The client is the bottleneck on purpose: each worker has a fixed number of requests in flight at a server that takes half a
second per answer. The machine's cores are mostly idle, so a second worker helps only by sending in parallel.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.prefect_servers import environment, sqlite_server, workers
from benchmarks.shared import (
    STILLHOUSE,
    Server,
    measured_on,
    openai_teacher,
    run,
    scratch,
    serving,
    table,
    versions_of,
    write_prompts,
    write_recipe,
)

LATENCY = 0.5
CONCURRENCY = 32  # per worker
SHARD = 200
SHARDS_A_PART = 20
WANTED = 1.8


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    count = 8 * SHARD if small else 80 * SHARD
    seconds = {}
    with (
        scratch() as folder,
        environment(PREFECT_HOME=str(folder / "home")),
        sqlite_server(folder),
        serving(LATENCY, folder / "server.log") as teacher,
    ):
        for number in (1, 2):
            with workers(folder, number):
                seconds[number] = _label(folder, teacher, number, count)
    rows = [[f"{number}", f"{each:.1f}", f"{count / each:.1f}"] for number, each in seconds.items()]
    return "\n\n".join(
        [
            f"{count:,} prompts, {CONCURRENCY} requests in flight a worker, answered after {LATENCY} s: the client is the "
            f"limit, {CONCURRENCY / LATENCY:.0f} completions a second a worker at best. {SHARDS_A_PART} shards of {SHARD} "
            "prompts a part; a part is a run in a process of its own, whose start is in the figures.",
            table(["workers", "seconds", "completions a second"], rows),
            f"Two beside one: {seconds[1] / seconds[2]:.2f} times the completions a second (wanted: {WANTED}).",
            measured_on(versions_of("prefect", "openai", "aiohttp")),
        ]
    )


def _label(folder: Path, teacher: Server, number: int, count: int) -> float:
    place = folder / f"{number}"
    place.mkdir()
    recipe = write_recipe(
        place,
        write_prompts(place / "prompts.jsonl", count),
        teacher=openai_teacher(teacher.base_url),
        shard_size=SHARD,
        concurrency=CONCURRENCY,
    )
    runner = f"label.runner={{kind: work-pool, workers: {number}, shards: {SHARDS_A_PART}}}"
    before = teacher.stats()["billed"]
    ended = run([*STILLHOUSE, "label", str(recipe), "--flow", "--set", runner], folder / "log.txt")
    billed = teacher.stats()["billed"] - before
    if billed != count:
        raise SystemExit(f"{billed} answers were billed for {count} prompts")
    print(f"{number} workers: {ended.seconds:.1f} s", flush=True)
    return ended.seconds
