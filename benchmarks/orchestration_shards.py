"""Seconds that each way of running adds per shard, and a thousand shards in one run.

A shard here is two prompts to the scripted teacher, which answers immediately, so the time is that of orchestration. Each
way labels few shards and many: the cost of a shard is the slope between the two, minus the slope of the plain call. The
intercept is the cost per run (start of an embedded API, imports).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prefect_servers import environment, postgres_server, sqlite_server, workers
from benchmarks.shared import (
    MIB,
    STILLHOUSE,
    Ended,
    measured_on,
    run,
    scratch,
    table,
    versions_of,
    write_prompts,
    write_recipe,
)

SHARD = 2  # prompts
PART = 40  # shards, the default of label.runner
REAL_SHARD_SECONDS = 1000 / 64  # 1,000 prompts, 64 in flight, answered within a second: the base of the 2 %


@dataclass(frozen=True)
class Cost:
    """The cost of one way of running."""

    shard: float  # seconds per shard
    run: float  # seconds per run, without its shards
    at_once: int = 1  # shards labelled in parallel, each by a separate process


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    few, many, thousand = (10, 20, 30) if small else (80, 400, 1000)
    with scratch() as folder, environment(PREFECT_HOME=str(folder / "home")):
        os.environ.pop("PREFECT_API_URL", None)
        plain = _cost(folder, "plain", (few, many), ["--no-flow"])
        costs = {"embedded API": _cost(folder, "embedded", (few, many), ["--flow"])}
        with sqlite_server(folder) as server:
            costs["server on SQLite"] = _cost(folder, "sqlite", (few, many), ["--flow"])
            before = server.database_bytes
            whole = _label(folder, "thousand", thousand, ["--flow"])
            grown = server.database_bytes - before
            alone = _label(folder, "thousand-plain", thousand, ["--no-flow"])
        with postgres_server(folder):
            costs["server on PostgreSQL"] = _cost(folder, "postgres", (few, many), ["--flow"])
            with workers(folder, 2):
                costs[f"two workers, {PART} shards a part"] = _cost(
                    folder, "workers", (few, many), ["--flow", *_in_parts("work-pool")], at_once=2
                )
        with _ray() as address:
            settings = [*_in_parts("ray"), "--set", f"label.runner.address={address}"]
            options = ["--no-flow", *settings]
            costs[f"Ray, two nodes, {PART} shards a part"] = _cost(folder, "ray", (few, many), options, at_once=2)
    rows = [["plain call", f"{plain.shard:.3f} in all", f"{plain.run:.1f}", ""]]
    for way, cost in costs.items():
        added = cost.shard - plain.shard
        rows.append([way, f"{added:.3f}", f"{cost.run:.1f}", f"{added * cost.at_once / REAL_SHARD_SECONDS:.2%}"])
    return "\n\n".join(
        [
            f"Shards of {SHARD} prompts to a teacher that answers at once; the slope between {few} and {many} shards, one "
            "round. A shard of 1,000 prompts, 64 of them at once and answered within a second, takes "
            f"{REAL_SHARD_SECONDS:.1f} s of the process that labels it; wanted is less than 2 %. Two workers and two "
            "nodes label two shards at once, so that a second more a shard is two of a labelling process.",
            table(["", "seconds added a shard", "seconds a run", "of a shard of 1,000 prompts"], rows),
            f"{thousand:,} shards in one run, on the server with SQLite:",
            table(
                ["", "plain call", "flow"],
                [
                    ["seconds", f"{alone.seconds:.1f}", f"{whole.seconds:.1f}"],
                    ["most memory of the labelling process", _mib(alone.peak_bytes), _mib(whole.peak_bytes)],
                    ["the server's database grew by", "", _mib(grown)],
                ],
            ),
            measured_on(versions_of("prefect", "ray", "sqlalchemy")),
        ]
    )


def _cost(folder: Path, way: str, counts: tuple[int, int], options: Sequence[str], at_once: int = 1) -> Cost:
    _label(folder, f"{way}-first", PART, options)  # warm-up: creates databases and fills caches
    few, many = (_label(folder, f"{way}-{count}", count, options).seconds for count in counts)
    shard = (many - few) / (counts[1] - counts[0])
    return Cost(shard, few - shard * counts[0], at_once)


def _label(folder: Path, name: str, shards: int, options: Sequence[str]) -> Ended:
    place = folder / name
    place.mkdir()
    prompts = write_prompts(place / "prompts.jsonl", shards * SHARD)
    recipe = write_recipe(place, prompts, teacher={"kind": "scripted"}, shard_size=SHARD, concurrency=1)
    ended = run([*STILLHOUSE, "label", str(recipe), "--set", "prompts.holdout=0", *options], folder / "log.txt")
    print(f"{name}: {ended.seconds:.1f} s", flush=True)
    return ended


def _in_parts(kind: str, **settings: str) -> list[str]:
    runner = ", ".join(f"{key}: {value}" for key, value in {"kind": kind, "shards": PART, **settings}.items())
    return ["--set", f"label.runner={{{runner}}}"]


@contextmanager
def _ray() -> Iterator[str]:
    """Run a Ray cluster of two nodes with one core each; yield its address."""
    from ray.cluster_utils import Cluster

    with environment(RAY_USAGE_STATS_ENABLED="0"), ExitStack() as running:
        node = {"num_cpus": 1, "object_store_memory": 100 * MIB}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        running.callback(cluster.shutdown)
        cluster.add_node(**node)
        yield str(cluster.address)


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f} MiB"
