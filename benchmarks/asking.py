"""Code shared by the clients of the throughput benchmark: their arguments, and the JSON line that they print at the end.

Each client is a separate module, run by the Python of its own virtual environment:

    .venv-curator/bin/python -m benchmarks.ask_curator --base-url http://127.0.0.1:8009/v1 \
        --prompts prompts.jsonl --concurrency 128 --folder /an/empty/folder

So this module uses only the standard library. Every client does the same work: each prompt once, temperature 0.7, at most
ten tokens, and at most `concurrency` requests in flight.
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
    """The work of a client."""

    base_url: str
    prompt_file: Path  # JSON lines with `prompt`
    concurrency: int
    folder: Path  # empty, for everything that the client writes: caches, answers, ...

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
    """Print the last line of standard output: the number of answers, the seconds of the client's call, its versions."""
    versions = {package: version(package) for package in packages}
    print(json.dumps({"rows": rows, "seconds": seconds, "versions": versions}), flush=True)
