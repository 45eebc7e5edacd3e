"""`stillhouse label` at a vLLM server that runs already.

    python -m benchmarks.ask_vllm_stillhouse RECIPE [--bodies FILE]

Timed: the engine's one call, which covers planning, the check of the server (without parity, which loads the model here),
every request, the journal, the Parquet files and the manifest; Python's start and the imports are left out, as they are
for the bare loop. With --bodies the requests are written down for that loop, and nothing is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import orjson

import stillhouse.models.load
import stillhouse.teachers.serving.vllm_answers  # noqa: F401
from stillhouse.labelling.engine import label
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.send_order import order_requests
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import open_teacher
from stillhouse.teachers.vllm import VllmTeacher


def write_bodies(recipe: Recipe, file: Path) -> None:
    """Write the bodies of all requests, in the order in which they are sent, as JSON lines."""
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    assert isinstance(teacher, VllmTeacher)
    with make_plan(recipe, teacher.identity) as plan, file.open("wb") as lines:
        for number in range(plan.shards):
            for request in order_requests(plan.shard(number).requests, batched=False):
                lines.write(orjson.dumps(teacher.body(request)) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--bodies", type=Path)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    if given.bodies:
        write_bodies(recipe, given.bodies)
        return
    began = time.perf_counter()
    result = asyncio.run(label(recipe))
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens": result.dataset.manifest.totals.completion_tokens, "seconds": seconds}))


if __name__ == "__main__":
    main()
