"""Request the end of a dataset's batch jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from stillhouse.dataset.store import journal_folder
from stillhouse.errors import TeacherUnavailable, UsageError
from stillhouse.labelling.batches.checks import check_batches
from stillhouse.labelling.batches.jobs import read_jobs
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import AttemptFailed, open_teacher


async def cancel_jobs(recipe: Recipe, ids: Sequence[str]) -> list[str]:
    """Ask the provider to end the running jobs of a recipe's dataset; return the ids of those that were asked.

    Nothing is changed on the disk: a labelling run that waits for the jobs, or the next one, collects what they answered.

    Args:
        recipe: the recipe.
        ids: the jobs to cancel; empty: all that run.

    Raises:
        UsageError: the dataset has no running job of this id.
        RecipeError: the teacher has no batch jobs.
        TeacherUnavailable: the provider cannot be reached, or refuses it.
    """
    teacher = check_batches(recipe, open_teacher(recipe.teacher, recipe.label, recipe.seed))
    running = {job.card.id: job.card for job in read_jobs(journal_folder(recipe.dataset)) if job.card.is_open}
    for id_ in ids:
        if id_ not in running:
            raise UsageError(
                f"{recipe.dataset.name} has no running job of this id",
                setting="JOB",
                value=id_,
                fix="`stillhouse jobs list` shows all",
            )
    cancelled = []
    try:
        for card in running.values():
            since = datetime.fromisoformat(card.created_at)
            remote_id = card.remote_id or await teacher.find_batch(card.id, requests=card.requests, since=since)
            if (not ids or card.id in ids) and remote_id is not None:
                await teacher.cancel_batch(remote_id)
                cancelled.append(card.id)
    except AttemptFailed as failure:
        raise TeacherUnavailable(failure.detail, fix="run it again") from None
    finally:
        await teacher.close()
    return cancelled
