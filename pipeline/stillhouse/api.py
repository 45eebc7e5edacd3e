"""The functions of `import stillhouse`: the stages of a run for scripts and notebooks.

    >>> import stillhouse
    >>> recipe = stillhouse.load_recipe("my-task.yaml")      # or a mapping of the same settings
    >>> stillhouse.plan(recipe).to_send                      # requests; print it for tokens and dollars; sends nothing
    12
    >>> dataset = stillhouse.label(recipe).dataset
    >>> dataset.manifest.rows
    {'train': 9, 'validation': 3}

With a `student` in the recipe, the next stages train and measure it:

    students = stillhouse.distill(recipe)
    report = stillhouse.evaluate(recipe).report

Each function does only what is missing: call it again after an interrupt, and it resumes. `label`, `distill`, `evaluate`
and `run` may be called inside a running event loop, such as a notebook's. The functions that end in `_async` are awaitable
and do not block the loop. Errors are those of `stillhouse.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.dataset.store import Dataset, find_dataset
from stillhouse.errors import RecipeError
from stillhouse.evaluation.evaluate import EvaluationResult
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
from stillhouse.labelling.estimate import Estimate
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.processes.quiet import quiet_libraries
from stillhouse.progress import Bars, Progress
from stillhouse.recipe.load import load_recipe as load_recipe_file
from stillhouse.recipe.overrides import with_overrides
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.stages.checks import check_distill, check_evaluate, check_labels, check_run
from stillhouse.stages.stages import (
    RunResult,
    distill_students,
    evaluate_stage,
    label_stage,
    plan_stage,
    recipe_dataset,
    run_stages,
)
from stillhouse.storage.location import location
from stillhouse.student.finished.folder import StudentResult

RecipeLike = Recipe | Mapping[str, Any] | str | Path  # a recipe, its settings, or the path of its file


def load_recipe(source: RecipeLike, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Return a recipe from a YAML file or from its settings.

    Args:
        source: a path, a URL, one of the recipes that ship with Stillhouse ("flows/recipes/quickstart.yaml"), a mapping
            such as the YAML file would hold, or a recipe.
        overrides: settings to change: {"label.sampling.temperature": 0}, or "a.b=value" as `--set` takes them.

    Raises:
        RecipeError: the file cannot be read, a setting is unknown or wrong, or two settings contradict each other.

    Examples:
        >>> recipe = load_recipe("my-task.yaml", {"label.sampling.temperature": 0})
        >>> recipe.name, recipe.label.sampling.temperature
        ('my-task', 0.0)
    """
    if isinstance(source, str | Path):
        return load_recipe_file(source, overrides)
    raw = source.model_dump(mode="json", by_alias=True, exclude_unset=True) if isinstance(source, Recipe) else source
    if not isinstance(raw, Mapping):
        raise RecipeError(
            f"a {type(raw).__name__} is not a recipe", fix="give a path, a mapping of settings, or a recipe"
        )
    return recipe_from(with_overrides(raw, overrides), origin="that was given")


def plan(recipe: RecipeLike) -> Estimate:
    """Return what labelling would send, cost and take. Nothing is sent and nothing is written.

    Raises:
        RecipeError: a setting is wrong.
        PromptError: a prompt cannot be read or lacks what the recipe needs.

    Examples:
        >>> estimate = plan("my-task.yaml")
        >>> estimate.prompts, estimate.to_send
        (12, 12)
    """
    return plan_stage(load_recipe(recipe))[0]


def label(
    recipe: RecipeLike,
    *,
    retry_rejected: Sequence[str] | None = None,
    detach: bool = False,
    progress: Progress | None = None,
) -> LabelResult:
    """Query the teacher for every prompt that has no answer yet, and return the finished dataset version.

    Args:
        recipe: what is labelled, by which teacher, into which dataset.
        retry_rejected: reasons to retry: requests that a teacher error rejected for one of them are sent again. An empty
            list: any reason. None: no retry.
        detach: with batch jobs (`label.delivery`), submit and collect, but do not wait for those that are running.
        progress: called with the activity, the items done and the total; None shows progress bars.

    Raises:
        RecipeError, PromptError: a setting or a prompt is wrong; nothing was sent.
        JobsPending: batch jobs are running, and `detach` is set.
        TeacherUnavailable: the teacher does not answer, or rejects every request; answers so far are kept.
        BudgetSpent: the next request could exceed `label.budget_usd`; answers so far are kept.
        DatasetBusy: another run is writing this dataset.

    Examples:
        >>> print(label("my-task.yaml"))
        my-task/v001: 12 requests sent, 0 answered before
        >>> print(label("my-task.yaml"))
        nothing to do: my-task/v001 already has answers to all 12 prompts
    """
    return run_coroutine(label_async(recipe, retry_rejected=retry_rejected, detach=detach, progress=progress))


async def label_async(
    recipe: RecipeLike,
    *,
    retry_rejected: Sequence[str] | None = None,
    detach: bool = False,
    progress: Progress | None = None,
) -> LabelResult:
    """Do what `label` does, without blocking the event loop."""
    loaded = load_recipe(recipe)
    await asyncio.to_thread(check_labels, loaded)
    with _bars(progress) as shown:
        retry = Retry.from_reasons(None if retry_rejected is None else [*retry_rejected])
        return await label_stage(loaded, shown, retry, detach=detach)


def distill(recipe: RecipeLike, *, only: str | None = None, progress: Progress | None = None) -> list[StudentResult]:
    """Train the recipe's student and its baselines from the dataset, where they are not finished yet.

    Args:
        recipe: the student, and the dataset that it learns from.
        only: train the student of this mode alone: "white-box", "black-box" or "gold".
        progress: as for `label`.

    Returns:
        One result per student: the baselines and the student or, for a sweep, each of its students.

    Raises:
        RecipeError: a setting is wrong.
        DatasetMissing: the prompts have not been labelled yet.
        TrainingError: the student cannot be built or trained as asked.
        StudentBusy: another run is training this recipe's students.
    """
    loaded = load_recipe(recipe)
    check_distill(loaded)
    with _bars(progress) as shown:
        return distill_students(loaded, shown, only)


async def distill_async(
    recipe: RecipeLike, *, only: str | None = None, progress: Progress | None = None
) -> list[StudentResult]:
    """Do what `distill` does in a thread, without blocking the event loop."""
    return await asyncio.to_thread(distill, recipe, only=only, progress=progress)


def evaluate(recipe: RecipeLike, *, progress: Progress | None = None) -> EvaluationResult | SweepEvaluation:
    """Measure teacher, baselines and student on the held-out prompts, and write the report where it does not exist yet.

    Args:
        recipe: whose students are measured.
        progress: as for `label`.

    Returns:
        The report and its files; of a sweep, that of all its students.

    Raises:
        RecipeError: a setting is wrong.
        DatasetMissing, StudentMissing: `label` or `distill` has not finished yet.
    """
    loaded = load_recipe(recipe)
    check_evaluate(loaded)
    with _bars(progress) as shown:
        return evaluate_stage(loaded, recipe_dataset(loaded), shown)


async def evaluate_async(recipe: RecipeLike, *, progress: Progress | None = None) -> EvaluationResult | SweepEvaluation:
    """Do what `evaluate` does in a thread, without blocking the event loop."""
    return await asyncio.to_thread(evaluate, recipe, progress=progress)


def run(recipe: RecipeLike, *, progress: Progress | None = None) -> RunResult:
    """Label, distil and evaluate: the whole run, skipping what is finished.

    Args:
        recipe: one that has a student.
        progress: as for `label`.

    Raises:
        RecipeError, PromptError: a setting or a prompt is wrong; nothing was sent.
        TeacherUnavailable, BudgetSpent, DatasetBusy: as `label` raises them.
        TrainingError, StudentBusy: as `distill` raises them.
    """
    loaded = load_recipe(recipe)
    check_run(loaded)
    with _bars(progress) as shown:
        return run_stages(loaded, shown)


async def run_async(recipe: RecipeLike, *, progress: Progress | None = None) -> RunResult:
    """Do what `run` does in a thread, without blocking the event loop."""
    return await asyncio.to_thread(run, recipe, progress=progress)


def open_dataset(name: str | Path, *, root: str | Path = "data/labels") -> Dataset:
    """Open a finished dataset version.

    Args:
        name: a name under `root` ("quickstart"), a version of it ("quickstart/v003"), or the folder or URL of either;
            without a version, the newest.
        root: the folder or URL that datasets are in (`dataset.root` in the recipe).

    Raises:
        DatasetMissing: there is none.
        DatasetRefused: its manifest cannot be read.

    Examples:
        >>> dataset = open_dataset("words")
        >>> dataset.manifest.label, dataset.manifest.rows
        ('words/v001', {'train': 9, 'validation': 3})
    """
    return find_dataset(location(str(root)), str(name))


@contextmanager
def _bars(progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress, or bars."""
    quiet_libraries()
    if progress is not None:
        yield progress
        return
    with Bars() as bars:
        yield bars
