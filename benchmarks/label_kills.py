"""Fifty kill -9 in one run of 5,000 prompts: answers lost, duplicated, and paid for twice.

The stand-in server runs in a separate process: it survives every kill, and counts the answers that it charged for, by
prompt. The times of the kills are seeded. Most come a random number of answers, plus some milliseconds, after the start,
drawn so that fifty kills spread over the whole run on any machine; every tenth is during the start instead (imports, plan,
opening the journal). Because shards are small, some kills interrupt the writing of Parquet files.

After each kill, the durable answers are read from the disk: the keys in (a copy of) the journal and in finished Parquet
files. A durable answer must be in the final dataset, and its prompt must never be charged for again. Requests in flight at
a kill are charged for twice, which cannot be avoided: the server answered after its client was gone.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

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

DATASET = "labels/benchmark"
LATENCY = 0.05
CONCURRENCY = 128
SHARD_SIZE = 250
SEED = 20
START_SECONDS = 1.5  # a kill "during the start" comes within this time
JITTER_SECONDS = 0.03  # maximum delay after the drawn number of answers was reached
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Killed:
    """The state after one kill."""

    durable: set[str]  # keys of answers in the journal or in a finished Parquet file
    charged: Mapping[str, int]  # prompt -> times charged, only if more than once
    billed: int  # answers charged for, over all prompts

    @property
    def lost(self) -> int:
        """Number of answers charged for but not on disk: they were in flight at this kill or an earlier one."""
        return self.billed - len(self.durable)


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    prompts, kills = (500, 5) if small else (5000, 50)
    with scratch() as folder, serving(LATENCY, folder / "server.log") as server:
        file = write_prompts(folder / "prompts.jsonl", prompts)
        recipe = write_recipe(
            folder, file, teacher=openai_teacher(server.base_url), shard_size=SHARD_SIZE, concurrency=CONCURRENCY
        )
        command = [*STILLHOUSE, "label", str(recipe), "--no-flow", "--json"]
        began = time.perf_counter()
        killed = _kill_often(command, folder, server, prompts, kills)
        told = run(command, folder / "log.txt").last_json
        seconds = time.perf_counter() - began
        verify = [*STILLHOUSE, "datasets", "verify", "benchmark", "--root", folder / "labels", "--json"]
        problems = run(verify, folder / "log.txt").last_json["problems"]
        figures = _figures(killed, file, Path(told["folder"]), server)
    return "\n\n".join(
        [
            f"One run of {prompts:,} prompts, {CONCURRENCY} requests in flight, {SHARD_SIZE} prompts a shard, against a "
            f"server that answers after {LATENCY * 1000:.0f} ms; killed with `kill -9` {kills} times at instants from seed "
            f"{SEED}, started again each time, and then left to end. {seconds:.0f} s in all.",
            table(
                ["", "measured", "wanted"],
                [*figures, ["files that `stillhouse datasets verify` objects to", f"{len(problems)}", "0"]],
            ),
            measured_on(versions_of("openai", "aiohttp", "pyarrow")),
        ]
    )


def _kill_often(command: Sequence[str], folder: Path, server: Server, prompts: int, kills: int) -> list[Killed]:
    random = Random(SEED)
    killed: list[Killed] = []
    durable = 0
    for number in range(kills):
        process = Running(command, folder / "log.txt")
        if number % 10 == 9:
            time.sleep(random.uniform(0, START_SECONDS))
        else:
            await_answers(process, server, random.randint(1, max(1, 2 * (prompts - durable) // (kills - number + 1))))
            time.sleep(random.uniform(0, JITTER_SECONDS))
        if process.has_ended:
            raise SystemExit(
                f"the run ended before kill {number + 1} of {kills}: take more prompts, or a slower server"
            )
        process.kill()
        time.sleep(2 * LATENCY)  # until the server has answered and charged for all requests in flight
        stats = server.stats()
        killed.append(Killed(durable_answers(folder / DATASET), stats["repeated"], stats["billed"]))
        durable = len(killed[-1].durable)
        print(f"kill {number + 1}: {durable:,} answers on the disk", flush=True)
    return killed


def await_answers(process: Running, server: Server, more: int) -> None:
    """Wait until the server has charged for `more` further answers, or the process has ended."""
    target = server.span()["billed"] + more
    while server.span()["billed"] < target and not process.has_ended:
        time.sleep(POLL_SECONDS)


def durable_answers(dataset: Path) -> set[str]:
    """Return the keys of all answers of a dataset that are on disk."""
    keys: set[str] = set()
    for file in dataset.glob("v*/data/*.parquet"):
        keys.update(pq.read_table(file, columns=["id"])["id"].to_pylist())
    copy = dataset.parent.parent / "journal"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in dataset.glob("journal.sqlite*"):
        shutil.copy(file, copy)  # reading would checkpoint the write-ahead log, and change what the next run finds
    if (copy / "journal.sqlite").is_file():
        with closing(sqlite3.connect(copy / "journal.sqlite")) as journal:
            if journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
                keys.update(key for (key,) in journal.execute("SELECT id FROM answers"))
    return keys


def _figures(killed: Sequence[Killed], prompt_file: Path, version: Path, server: Server) -> list[list[str]]:
    """Check the finished dataset against the prompts, and the final counts against those at each kill."""
    with prompt_file.open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    rows: list[tuple[str, str]] = []
    for file in version.glob("data/*.parquet"):
        read = pq.read_table(file, columns=["id", "prompt"]).to_pylist()
        rows += [(row["id"], row["prompt"][-1]["content"]) for row in read]
    prompt_of = dict(rows)
    stats = server.stats()
    gone = charged_again = 0
    seen: set[str] = set()
    for kill in killed:
        for key in kill.durable - seen:
            prompt = prompt_of.get(key)
            gone += prompt is None
            if prompt is not None:
                charged_again += stats["repeated"].get(prompt, 1) - kill.charged.get(prompt, 1)
        seen |= kill.durable
    twice = stats["billed"] - len(prompts)
    lost = [kill.lost for kill in killed]
    most = max(after - before for before, after in pairwise([0, *lost]))
    return [
        ["prompts without a row", f"{len(set(prompts) - {prompt for _, prompt in rows}):,}", "0"],
        ["rows more than prompts", f"{len(rows) - len({prompt for _, prompt in rows}):,}", "0"],
        ["answers on the disk at a kill and not in the dataset", f"{gone:,}", "0"],
        ["answers on the disk at a kill and charged for again", f"{charged_again:,}", "0"],
        ["answers in flight at a kill, and charged for again", f"{twice:,}", f"at most {CONCURRENCY * len(killed):,}"],
        ["of these, at one kill", f"at most {most}", f"at most {CONCURRENCY}"],
    ]
