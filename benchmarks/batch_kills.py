"""Fifty kill -9 over the submission, polling, download and settlement of 20 jobs with 50,000 rows.

Twice: with jobs that complete, and with every end that a job may have. The provider is the stand-in in a separate process;
it counts the jobs that were submitted by our ids, and the answers that it charged for, by prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

from benchmarks.shared import (
    STILLHOUSE,
    Running,
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

SEED = 21
ENDS = ("completed", "expired:{half}", "lost:7", "cut", "double", "cancelled:{half}", "queue")  # of the jobs, in turn
LONGEST_SECONDS = 9.0  # between a start and its kill


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    rows, jobs, kills = (400, 4, 4) if small else (50_000, 20, 50)
    plain = _killed(rows, jobs, kills, ["completed"])
    mixed = _killed(rows, jobs, kills, [end.format(half=rows // jobs // 2) for end in ENDS])
    names = [
        "rows lost",
        "rows doubled",
        "jobs submitted twice",
        "answers charged for twice",
        "money reserved for ever, $",
        "files left at the provider",
        "files that `stillhouse datasets verify` objects to",
        "kills",
        "jobs",
        "seconds in all",
    ]
    wanted = ["0", "0", "0", "0", "0", "0", "0", "", "", ""]
    return "\n\n".join(
        [
            f"{rows:,} rows in jobs of {rows // jobs:,}, killed with `kill -9` {kills} times at instants from seed {SEED}, "
            "started again each time, and then left to end. *All complete*: every job does. *Every end*: in turn, jobs "
            "complete, expire halfway, lose results, break off their first download, give results twice and unknown ones, "
            "are cancelled halfway by somebody else, and are refused because too many tokens are waiting.",
            table(
                ["", "all complete", "every end", "wanted"],
                [list(row) for row in zip(names, plain, mixed, wanted, strict=True)],
            ),
            measured_on(versions_of("openai")),
        ]
    )


def _killed(rows: int, jobs: int, kills: int, ends: Sequence[str]) -> list[str]:
    batches = {"ends": [ends[number % len(ends)] for number in range(4 * jobs)], "polls": 2}
    with scratch() as folder, serving(0.0, folder / "server.log", batches=batches) as server:
        prompts = write_prompts(folder / "prompts.jsonl", rows)
        teacher = openai_teacher(server.base_url) | {
            "price": {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
        }
        file = write_recipe(folder, prompts, teacher=teacher, shard_size=1000, concurrency=64)
        raw = json.loads(file.read_text(encoding="utf-8"))
        batch = {"requests": rows // jobs, "at_once": jobs, "poll": 0.2, "unseen": 0.5}
        raw["label"] |= {"delivery": "batch", "batch": batch, "budget_usd": 1000.0}
        file.write_text(json.dumps(raw), encoding="utf-8")
        command = [*STILLHOUSE, "label", str(file), "--no-flow", "--json"]
        random, killed = Random(SEED), 0
        began = time.perf_counter()
        for _ in range(kills):
            process = Running(command, folder / "log.txt")
            until = time.monotonic() + random.uniform(0.3, LONGEST_SECONDS if rows > 1000 else 1.5)
            while time.monotonic() < until and not process.has_ended:
                time.sleep(0.01)
            killed += not process.has_ended
            process.kill()
        told = run(command, folder / "log.txt").last_json
        seconds = time.perf_counter() - began
        verify = [*STILLHOUSE, "datasets", "verify", "benchmark", "--root", folder / "labels", "--json"]
        problems = run(verify, folder / "log.txt").last_json["problems"]
        found = [id_ for one in Path(told["folder"]).glob("data/*.parquet") for id_ in _ids(one)]
        listed = run([*STILLHOUSE, "jobs", "list", "--root", folder / "labels", "--json"], folder / "log.txt").last_json
        reserved = sum(job["worst_usd"] for job in listed["jobs"] if job["state"] != "settled")
        stats = server.stats()
    return [
        f"{rows - len(set(found)):,}",
        f"{len(found) - len(set(found)):,}",
        f"{stats['jobs_submitted_twice']:,}",
        f"{sum(count - 1 for count in stats['repeated'].values()):,}",
        f"{reserved:.2f}",
        f"{stats['files']:,}",
        f"{len(problems)}",
        f"{killed}",
        f"{stats['jobs']}",
        f"{seconds:.0f}",
    ]


def _ids(file: Path) -> list[str]:
    ids: list[str] = pq.read_table(file, columns=["id"])["id"].to_pylist()
    return ids
