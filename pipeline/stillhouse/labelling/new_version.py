"""Start and finish a dataset version.

    folder, parents = start_version(recipe, plan, journal)      # resumes an unfinished version, or starts the next
    delete_journaled_answers(plan, journal)                     # after its shards and its manifest are written

The engine writes the shards in between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set

from stillhouse.dataset.files import SHARD_NAME, ShardFiles
from stillhouse.dataset.manifest import version_label
from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset, started_versions, versions
from stillhouse.labelling.former_names import Former, claim_former_name, record_recipe, rename_journaled_answers
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.plan import LabelPlan, ShardName
from stillhouse.labelling.retrying import Retry, teacher_rejections
from stillhouse.labelling.reuse import copy_earlier_answers, copy_except_retried
from stillhouse.recipe.dataset import DatasetSettings
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import RECIPE_FILE, EncodingName
from stillhouse.storage.durable import write_atomically
from stillhouse.storage.location import Location, location

_TEMPORARY = re.compile(rf"\.{SHARD_NAME.pattern}\.\d+\.tmp")  # temporary files left by a killed writer
_COPIED_NOTE = "adopted"  # the journal's note of the plan whose answers were copied from earlier versions
_RETRY_NOTE = "retrying"  # its note of the plan and the version that retry rejections


def advised_name(settings: DatasetSettings) -> str:
    """Return the name of the dataset with the answers that `stillhouse advise` asked for; labelling reuses them."""
    return f"{settings.name}-advise"


def advised_versions(settings: DatasetSettings) -> list[Dataset]:
    """Return the datasets with the answers that `stillhouse advise` asked for, the oldest first."""
    folder = location(settings.root) / advised_name(settings)
    return [open_dataset(folder, number) for number in versions(folder)]


def version_of_plan(base: Location, plan: LabelPlan, journal: Journal) -> Dataset | None:
    """Return the newest finished version of a dataset if it was made from this plan, else None."""
    if not versions(base):
        return None
    newest = open_dataset(base)
    answer_settings = plan.settings_of_version(newest.manifest, journal.get_note)
    if isinstance(answer_settings, Former):
        claim_former_name(journal, answer_settings, newest.manifest.label)
    return newest if answer_settings is not None else None


def finished_version(base: Location, plan: LabelPlan, journal: Journal, retry: Retry | None) -> Dataset | None:
    """Return the finished version that satisfies the plan; None if a version must be written.

    A retry needs another version of the same plan; an interrupted retry is resumed even if `retry` is None.

    Raises:
        UsageError: the retry names a reason for which nothing was rejected.
    """
    newest = version_of_plan(base, plan, journal)
    has_rejections = False
    if retry is not None:
        rejected = journal.rejections() + (teacher_rejections(newest) if newest else Counter())
        retry.check(rejected)
        has_rejections = any(retry.selects(reason, answered=answered) for reason, answered in rejected)
    resumes_retry = (journal.get_note(_RETRY_NOTE) or "").startswith(plan.sha256)
    return None if has_rejections or resumes_retry else newest


def start_version(
    recipe: Recipe, plan: LabelPlan, journal: Journal, retry: Retry | None = None
) -> tuple[Location, list[str]]:
    """Return the folder of the version to write and its parents, whose answers are then in the journal.

    Removes temporary files of a killed run and shards of another plan: their answers are in the journal. With `retry`, the
    teacher rejections to retry are removed from the journal.
    """
    base = dataset_folder(recipe.dataset)
    finished = versions(base)
    started = [number for number in started_versions(base) if number not in finished]
    folder = base / version_label(started[-1] if started else max(finished, default=0) + 1)
    _delete_stale_shards(folder, plan)
    rename_journaled_answers(journal, plan.former, plan.renamings, base)
    record_recipe(journal, plan.answer_settings, recipe)
    if retry is not None:
        _start_retry(retry, plan, journal, folder)
    earlier = advised_versions(recipe.dataset) + [open_dataset(base, number) for number in finished]
    parents = _copy_once(plan, journal, encoding_of(recipe.label.soft), earlier)
    write_atomically(folder / RECIPE_FILE, recipe.as_yaml().encode())
    return folder, parents


def delete_journaled_answers(plan: LabelPlan, journal: Journal) -> None:
    """Delete a plan's answers from the journal, since its finished version contains them."""
    journal.set_note(_RETRY_NOTE, "")
    journal.set_note(_COPIED_NOTE, "")  # if the version is deleted, the answers must be copied again
    journal.delete(plan.ids(), plan.requests)


def shard_files(folder: Location, shard: ShardName) -> ShardFiles:
    """Return the files of a shard in a version's folder."""
    return ShardFiles(folder, shard.split, shard.index, shard.shard_count)


def _delete_stale_shards(folder: Location, plan: LabelPlan) -> None:
    """Delete shards of another plan from an unfinished version."""
    _delete_shards(folder, kept={shard_files(folder, name).name for name in plan.names})


def _delete_shards(folder: Location, kept: Set[str] = frozenset()) -> None:
    """Delete the shard files of an unfinished version, except those in `kept`; other files stay."""
    for part in ("data", "rejected"):
        for file in (folder / part).glob("*"):
            is_shard = SHARD_NAME.fullmatch(file.name) or _TEMPORARY.fullmatch(file.name)
            if is_shard and file.name not in kept:
                file.unlink()


def _start_retry(retry: Retry, plan: LabelPlan, journal: Journal, folder: Location) -> None:
    """Delete the rejections to retry, once: a resumed retry keeps the rejections it has recorded since."""
    started = f"{plan.sha256} {folder.name}"
    if journal.get_note(_RETRY_NOTE) == started:
        return
    journal.delete_rejections(retry)
    _delete_shards(folder)  # they are written again from the journal
    if (newest := version_of_plan(folder.parent, plan, journal)) is not None:
        copied = copy_except_retried(retry, plan, journal, newest)
        journal.set_note(_COPIED_NOTE, " ".join([plan.sha256, *([newest.manifest.label] if copied else [])]))
    journal.set_note(_RETRY_NOTE, started)


def _copy_once(plan: LabelPlan, journal: Journal, soft: EncodingName | None, earlier: Sequence[Dataset]) -> list[str]:
    """Copy this plan's answers from earlier versions into the journal, once per plan; return the parents' names."""
    plan_sha256, _, parents = (journal.get_note(_COPIED_NOTE) or "").partition(" ")
    if plan_sha256 == plan.sha256:
        return parents.split()
    copied = copy_earlier_answers(
        plan, journal, [version for version in earlier if encoding_of(version.manifest.soft) == soft]
    )
    journal.set_note(_COPIED_NOTE, " ".join([plan.sha256, *copied]))
    return copied
