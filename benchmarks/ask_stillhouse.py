"""The Stillhouse client: `stillhouse label` with a teacher of kind `openai`; each answer is durable on disk.

This process runs the command line; only the call of the engine is timed in it. Timed: from the call of
`stillhouse.labelling.engine.label` until it returns, which covers reading and planning the prompts, every request, the
journal (fsync before an answer counts), the Parquet files, the card and the manifest. As with the other clients, Python's
start and the imports are not included; the engine's lazy imports are done up front. The parent times the whole process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import aiohttp  # noqa: F401  this and the next four are imported up front, see above
import genai_prices  # noqa: F401
import openai.resources.chat  # noqa: F401
import pandas  # noqa: F401  imported by pyarrow

import stillhouse.teachers.openai  # noqa: F401
from benchmarks.asking import task_from_arguments, tell
from benchmarks.shared import openai_teacher, write_recipe
from stillhouse.cli.main import app
from stillhouse.labelling.result import LabelResult
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages import stages

_label = stages.label
_calls: list[tuple[LabelResult, float]] = []


async def _timed_label(recipe: Recipe, progress: Progress, *settings: Any) -> LabelResult:
    began = time.perf_counter()
    result = await _label(recipe, progress, *settings)
    _calls.append((result, time.perf_counter() - began))
    return result


def main() -> None:
    task = task_from_arguments()
    recipe = write_recipe(
        task.folder,
        task.prompt_file,
        teacher=openai_teacher(task.base_url),
        shard_size=1000,
        concurrency=task.concurrency,
    )
    stages.label = _timed_label
    app(["label", str(recipe), "--no-flow", "--json"], standalone_mode=False)
    [(result, seconds)] = _calls
    assert Path(result.dataset.folder, "manifest.json").is_file()
    tell(rows=sum(result.dataset.manifest.rows.values()), seconds=seconds, packages=["openai", "aiohttp", "pyarrow"])


if __name__ == "__main__":
    main()
