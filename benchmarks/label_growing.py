"""Ten runs over a growing source, one kill -9 in each: answers labelled, answers paid for twice, and the chain of versions.

Before each run the source gains prompts. The run is killed at a seeded random time, spread over its new answers, then
restarted until it finishes, as a scheduler would do. The stand-in server runs in a separate process and counts the answers
that it charged for, by prompt. The answers durable at a kill are read from the disk, as in `label_kills`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from benchmarks.label_kills import Killed, await_answers, durable_answers
from benchmarks.shared import (
    STILLHOUSE,
    Running,
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

LATENCY = 0.05
CONCURRENCY = 64
SHARD_SIZE = 100
RUNS = 10
SEED = 8
JITTER_SECONDS = 0.03


@dataclass(frozen=True)
class Night:
    """One run: its kill, and its JSON result."""

    killed: Killed
    told: dict[str, Any]
    seconds: float  # of the run after the kill


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    new = 100 if small else 500
    random = Random(SEED)
    nights: list[Night] = []
    with scratch() as folder, serving(LATENCY, folder / "server.log") as server:
        log = folder / "log.txt"
        recipe = write_recipe(
            folder,
            folder / "prompts.jsonl",
            teacher=openai_teacher(server.base_url),
            shard_size=SHARD_SIZE,
            concurrency=CONCURRENCY,
        )
        command = [*STILLHOUSE, "label", str(recipe), "--no-flow", "--json"]
        for number in range(RUNS):
            file = write_prompts(folder / "prompts.jsonl", (number + 1) * new)
            killed = _kill_one(command, folder, server, random, new)
            began = time.perf_counter()
            told = run(command, log).last_json
            nights.append(Night(killed, told, time.perf_counter() - began))
            print(f"run {number + 1}: {told['message']}", flush=True)
        before = server.stats()["requests"]
        idle = run(command, log)
        with file.open(encoding="utf-8") as lines:
            prompts = [json.loads(line)["prompt"] for line in lines]
        figures = [
            *_figures(nights, prompts, server.stats()),
            ["requests sent by one more run, with nothing new", f"{server.stats()['requests'] - before}", "0"],
            ["its version", idle.last_json["dataset"].partition("/")[2], f"v{RUNS:03d}"],
        ]
    return "\n\n".join(
        [
            f"{RUNS} runs over a source that gains {new:,} prompts before each, {CONCURRENCY} requests in flight, "
            f"{SHARD_SIZE} prompts a shard, against a server that answers after {LATENCY * 1000:.0f} ms; each killed once "
            f"with `kill -9` at an instant from seed {SEED}, and run again to its end. The run after the kill took "
            f"{nights[0].seconds:.1f} s at the first version and {nights[-1].seconds:.1f} s at the last, which is "
            f"{RUNS} times as large; one with nothing new {idle.seconds:.1f} s, most of it imports.",
            table(["", "measured", "wanted"], figures),
            measured_on(versions_of("openai", "aiohttp", "pyarrow")),
        ]
    )


def _kill_one(command: Sequence[str], folder: Path, server: Server, random: Random, new: int) -> Killed:
    process = Running(command, folder / "log.txt")
    await_answers(process, server, random.randint(1, new - 2 * CONCURRENCY) if new > 2 * CONCURRENCY else 1)
    time.sleep(random.uniform(0, JITTER_SECONDS))
    if process.has_ended:
        raise SystemExit("the run ended before its kill: take more prompts, or a slower server")
    process.kill()
    time.sleep(2 * LATENCY)  # until the server has answered and charged for all requests in flight
    stats = server.stats()
    return Killed(durable_answers(folder), stats["repeated"], stats["billed"])


def _figures(nights: Sequence[Night], prompts: Sequence[str], stats: dict[str, Any]) -> list[list[str]]:
    """Compare the newest version with the source, and the final counts with those at each kill; check each parent."""
    rows: list[tuple[str, str]] = []
    for file in Path(nights[-1].told["folder"]).glob("data/*.parquet"):
        read = pq.read_table(file, columns=["id", "prompt"]).to_pylist()
        rows += [(row["id"], row["prompt"][-1]["content"]) for row in read]
    prompt_of = dict(rows)
    gone = charged_again = 0
    for kill in (night.killed for night in nights):
        gone += len(kill.durable - prompt_of.keys())
        held = [prompt_of[key] for key in kill.durable & prompt_of.keys()]
        charged_again += sum(stats["repeated"].get(one, 1) > kill.charged.get(one, 1) for one in held)
    chained = sum(after.told["parents"] == [before.told["dataset"]] for before, after in pairwise(nights))
    return [
        ["prompts without a row", f"{len(set(prompts) - {prompt for _, prompt in rows}):,}", "0"],
        ["rows more than prompts", f"{len(rows) - len({prompt for _, prompt in rows}):,}", "0"],
        ["versions whose one parent is the version before", f"{chained}", f"{len(nights) - 1}"],
        ["answers on the disk at a kill and not in the newest version", f"{gone:,}", "0"],
        ["answers on the disk at a kill and charged for again", f"{charged_again:,}", "0"],
        [
            "answers in flight at a kill, and charged for again",
            f"{stats['billed'] - len(prompts):,}",
            f"at most {CONCURRENCY * len(nights):,}",
        ],
    ]
