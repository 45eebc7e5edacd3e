"""Seconds and memory of a job of 50,000 rows, step by step, and of planning 1,000,000 rows in 20 jobs.

Memory is flat if a dataset of many jobs needs no more than one of few: the same job size, with one job and with four.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.shared import (
    STILLHOUSE,
    Ended,
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

WANTED_SECONDS = 90


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    job, many = (500, 2_000) if small else (50_000, 1_000_000)
    rows = []
    for count in (job, 4 * job):
        submitted, collected = _labelled(count, job)
        rows.append(
            [
                f"{count:,} rows in {count // job} job{'s' * (count > job)}",
                f"{submitted.seconds:.1f}",
                f"{collected.seconds:.1f}",
                f"{submitted.peak_bytes / 1e6:,.0f}",
                f"{collected.peak_bytes / 1e6:,.0f}",
            ]
        )
    planned = _planned(many)
    return "\n\n".join(
        [
            "From `stillhouse label --detach` (plan, write and upload the jobs) and from the run that collects (download, "
            "journal, shards, commit), each with its start; the provider is the stand-in on this machine:",
            table(["", "make and upload, s", "read and settle, s", "peak MB", "peak MB, settling"], rows),
            f"`stillhouse plan` of {many:,} rows in {max(1, many // job)} jobs: {planned.seconds:.1f} s (wanted: under "
            f"{WANTED_SECONDS}), {planned.peak_bytes / 1e6:,.0f} MB.",
            measured_on(versions_of("openai")),
        ]
    )


def _labelled(rows: int, job: int) -> tuple[Ended, Ended]:
    with scratch() as folder, serving(0.0, folder / "server.log", batches={"polls": 1}) as server:
        file = _recipe(folder, rows, server.base_url, {"requests": job, "poll": 0.05})
        command = [*STILLHOUSE, "label", file, "--no-flow", "--json"]
        submitted = run([*command, "--detach"], folder / "log.txt")
        return submitted, run(command, folder / "log.txt")


def _planned(rows: int) -> Ended:
    with scratch() as folder:
        file = _recipe(folder, rows, "http://127.0.0.1:9/v1", {})
        return run([*STILLHOUSE, "plan", file], folder / "log.txt")


def _recipe(folder: Path, rows: int, base_url: str, batch: dict[str, object]) -> Path:
    prompts = write_prompts(folder / "prompts.jsonl", rows)
    file = write_recipe(folder, prompts, teacher=openai_teacher(base_url), shard_size=1000, concurrency=64)
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["label"] |= {"delivery": "batch", "batch": batch}
    file.write_text(json.dumps(raw), encoding="utf-8")
    return file
