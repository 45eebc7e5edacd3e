"""The whole way as one flow: fine-tune the teacher where the recipe says so, label, distil, evaluate, report."""

from __future__ import annotations

import asyncio

from prefect import flow

from flows.common import FLOW, logged_progress
from flows.distill import distill_flow
from flows.evaluate import evaluate_flow
from flows.finetune import finetune_flow
from flows.label import label_flow
from pipeline.config import load_recipe
from pipeline.finetuning import make_gold
from pipeline.stages import RunResult, check_run, of_version


@flow(name="run", flow_run_name="run {recipe}", **FLOW)
def run_flow(recipe: str, overrides: list[str] | None = None) -> RunResult:
    """Run a recipe to its report; `overrides` are as `--set` takes them.

    A synchronous flow on purpose: training runs in the main thread, where an interrupt reaches it at once.
    """
    loaded = load_recipe(recipe, overrides or [])
    check_run(loaded)
    finetuned = finetune_flow(recipe, overrides) if loaded.teacher.finetune else None
    if loaded.needs_gold and finetuned is None:
        make_gold(loaded, logged_progress())
    labelled = asyncio.run(label_flow(recipe, overrides))
    version = of_version(loaded, labelled.dataset).dataset.version  # whatever others add to the dataset meanwhile
    kept = [*(overrides or []), f"dataset.version={version}"]
    students = distill_flow(recipe, kept)
    return RunResult(finetuned, labelled, students, evaluate_flow(recipe, kept))
