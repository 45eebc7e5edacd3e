"""What the clients of the throughput benchmark have in common: their arguments, and the one JSON line they end with.

Each client is a module of its own, run by the Python of its own virtual environment:

    .venv-curator/bin/python -m benchmarks.ask_curator --base-url http://127.0.0.1:8009/v1 \
        --prompts prompts.jsonl --concurrency 128 --folder /an/empty/folder

So this file needs the standard library alone. Every client is asked for the same: each prompt once, temperature 0.7, at
most ten tokens, and no more requests in flight than `concurrency`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MODEL = "stand-in"
TEMPERATURE = 0.7
MAX_TOKENS = 10


@dataclass(frozen=True)
class Task:
    """What a client is to do."""

    base_url: str
    prompt_file: Path  # JSON lines with `prompt`
    concurrency: int
    folder: Path  # empty, for caches, answers and whatever else it writes

    @property
    def prompts(self) -> list[str]:
        with self.prompt_file.open(encoding="utf-8") as lines:
            return [json.loads(line)["prompt"] for line in lines]


def task_from_arguments() -> Task:
    parser = argparse.ArgumentParser(description="One client of the throughput benchmark.")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    return Task(given.base_url, given.prompts, given.concurrency, given.folder)


def tell(*, rows: int, seconds: float, packages: list[str]) -> None:
    """The last line of standard output: answers that came out, the seconds of the client's own call, its versions."""
    versions = {package: version(package) for package in packages}
    print(json.dumps({"rows": rows, "seconds": seconds, "versions": versions}), flush=True)
