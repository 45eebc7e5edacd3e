"""The whole way as one flow: label, distil, evaluate, report."""

from __future__ import annotations

import asyncio

from prefect import flow

from flows.common import FLOW
from flows.distill import distill_flow
from flows.evaluate import evaluate_flow
from flows.label import label_flow
from pipeline.config import load_recipe
from pipeline.stages import RunResult, check_student


@flow(name="run", flow_run_name="run {recipe}", **FLOW)
def run_flow(recipe: str, overrides: list[str] | None = None) -> RunResult:
    """Run a recipe to its report; `overrides` are as `--set` takes them.

    A synchronous flow on purpose: training runs in the main thread, where an interrupt reaches it at once.
    """
    check_student(load_recipe(recipe, overrides or []))
    labelled = asyncio.run(label_flow(recipe, overrides))
    students = distill_flow(recipe, overrides)
    return RunResult(labelled, students, evaluate_flow(recipe, overrides))
