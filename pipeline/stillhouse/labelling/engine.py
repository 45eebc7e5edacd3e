"""Label a recipe: request answers from the teacher, journal each one, and commit shard by shard.

    with open_job(recipe) as job:
        await job.run(job.label_shard)
        dataset = job.commit()

Storage alone decides what is done: a shard on disk is not processed again, an answer in the journal is not requested again,
and a version with a manifest is finished. To resume after any interruption, call it again. job.py does the work of a job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

from stillhouse.dataset.store import dataset_folder
from stillhouse.errors import DatasetBusy
from stillhouse.labelling.budget import check_budget
from stillhouse.labelling.dataset_lock import (
    lock_dataset,
    newest_manifest,
    newest_version,
    open_journal,
    wait_for_dataset_lock,
)
from stillhouse.labelling.filtering import filters_of
from stillhouse.labelling.former_names import former_names, warn_if_plugin_code_changed
from stillhouse.labelling.job import LabelJob
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.labelling.runner import Runner
from stillhouse.progress import Progress, silent
from stillhouse.quality.base import open_filters
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import open_teacher


async def label(
    recipe: Recipe,
    progress: Progress = silent,
    retry: Retry | None = None,
    runner: Runner | None = None,
    *,
    detach: bool = False,
) -> LabelResult:
    """Label a recipe: hand parts to a runner, label every shard, then write the manifest.

    Args:
        recipe: the recipe to label.
        progress: called with the activity, the items done and the total.
        retry: which of the teacher's rejections to retry.
        runner: labels parts elsewhere (`open_runner`); without it, this process sends every request.
        detach: with batch jobs, submit and collect, but do not wait for those that are running.

    Raises:
        JobsPending: batch jobs are running, and `detach` is set.
    """
    async with open_job_when_free(recipe, progress, retry) as job:
        try:
            await job.run_batches(wait=not detach)
            await job.run_parts(runner)
            await job.run(job.label_shard)
        finally:
            await job.close()
        return job.commit()


@asynccontextmanager
async def open_job_when_free(
    recipe: Recipe, progress: Progress = silent, retry: Retry | None = None
) -> AsyncIterator[LabelJob]:
    """Like `open_job`, but follow `dataset.when_busy` while another run is writing the dataset.

    After waiting, the prompts are read again: the run labels the source as it is then, minus what the other run labelled.
    """
    async with AsyncExitStack() as opened:
        busy = None
        try:
            job = opened.enter_context(open_job(recipe, progress, retry))
        except DatasetBusy as error:
            busy = error
        if busy is not None:
            await opened.enter_async_context(wait_for_dataset_lock(recipe.dataset, busy, progress))
            job = opened.enter_context(open_job(recipe, progress, retry, locked=True))
        yield job


@contextmanager
def open_job(
    recipe: Recipe, progress: Progress = silent, retry: Retry | None = None, *, locked: bool = False
) -> Iterator[LabelJob]:
    """Plan a recipe's labelling and lock its dataset for writing, unless the caller holds the lock already (`locked`).

    Raises:
        UsageError: the recipe, the prompts, the filters or the retry are wrong; nothing was written.
        DatasetBusy: another run is writing this dataset.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    check_budget(recipe, teacher)
    filters = open_filters(filters_of(recipe))
    folder = dataset_folder(recipe.dataset)
    with ExitStack() as opened:
        newest = None if locked else newest_version(folder)
        former = former_names(teacher, recipe.label, folder)
        plan = opened.enter_context(make_plan(recipe, teacher.identity, former))
        if not locked:
            opened.enter_context(lock_dataset(recipe.dataset))
            if newest_version(folder) != newest:  # another run finished meanwhile and may have read a newer source
                former = former_names(teacher, recipe.label, folder)
                plan = opened.enter_context(make_plan(recipe, teacher.identity, former))
        warn_if_plugin_code_changed(recipe.teacher.kind, newest_manifest(folder))
        journal = opened.enter_context(open_journal(recipe.dataset, encoding_of(recipe.label.soft)))
        yield LabelJob(recipe, plan, teacher, filters, journal, progress, _LocalRunner(), retry)


class _LocalRunner:
    """A runner that labels parts in this process."""

    async def label(self, recipe: str, name: str) -> None:
        await label(load_recipe(recipe))
