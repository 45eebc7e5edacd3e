"""A dataset version from its first file to the moment when the journal may forget.

    folder, parents = start_version(recipe, plan, journal)      # one that was begun, or the next
    let_go(plan, journal)                                       # after its shards and its manifest

The engine writes what lies between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set

from stillhouse.dataset.files import SHARD_NAME, ShardFiles
from stillhouse.dataset.manifest import version_label
from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset, started_versions, versions
from stillhouse.labelling.earlier_names import Former, rename_kept, settle
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.plan import LabelPlan, ShardName
from stillhouse.labelling.retrying import Retry, teacher_rejections
from stillhouse.labelling.reuse import take_all_but, take_over
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.load import Recipe
from stillhouse.records import EncodingName
from stillhouse.storage.durable import write_atomically
from stillhouse.storage.location import Location

_HALF_WRITTEN = re.compile(rf"\.{SHARD_NAME.pattern}\.\d+\.tmp")  # by a writer that was killed
_ADOPTED = "adopted"  # the journal's note of the plan whose answers were taken over from earlier versions
_RETRYING = "retrying"  # its note of the plan and the version in which rejections are asked for again


def same_version(base: Location, plan: LabelPlan, journal: Journal) -> Dataset | None:
    """The newest finished version of a dataset, if it was made from this very plan."""
    if not versions(base):
        return None
    newest = open_dataset(base)
    name = plan.name_of(newest.manifest, journal.noted)
    if isinstance(name, Former):
        settle(journal, name, newest.manifest.label)
    return newest if name is not None else None


def finished_version(base: Location, plan: LabelPlan, journal: Journal, retry: Retry | None) -> Dataset | None:
    """The version that has all that is asked for; None where one is to be written.

    A retry asks for another version of the same plan; one that was stopped goes on, asked for or not.

    Raises:
        UsageError: the retry names a reason that nothing was rejected for.
    """
    newest = same_version(base, plan, journal)
    wanted = False
    if retry is not None:
        rejected = journal.rejections() + (teacher_rejections(newest) if newest else Counter())
        retry.check(rejected)
        wanted = any(retry.wants(reason, answered=answered) for reason, answered in rejected)
    goes_on = (journal.noted(_RETRYING) or "").startswith(plan.sha256)
    return None if wanted or goes_on else newest


def start_version(
    recipe: Recipe, plan: LabelPlan, journal: Journal, retry: Retry | None = None
) -> tuple[Location, list[str]]:
    """The folder of the version to write and its parents, whose answers are in the journal afterwards.

    Half-written files of a killed run, and shards cut from another plan, are gone: their answers are in the journal. With
    `retry`, what the teacher rejected is not there either.
    """
    base = dataset_folder(recipe.dataset)
    finished = versions(base)
    begun = [number for number in started_versions(base) if number not in finished]
    folder = base / version_label(begun[-1] if begun else max(finished, default=0) + 1)
    _drop_stale(folder, plan)
    rename_kept(journal, plan.former, plan.renamings, base)
    if retry is not None:
        _begin_retry(retry, plan, journal, folder)
    parents = _adopt(plan, journal, encoding_of(recipe.label.soft), [open_dataset(base, number) for number in finished])
    write_atomically(folder / "recipe.yaml", recipe.as_yaml().encode())
    return folder, parents


def let_go(plan: LabelPlan, journal: Journal) -> None:
    """Drop a plan's answers from the journal: its version is finished and has them."""
    journal.note(_RETRYING, "")
    journal.note(_ADOPTED, "")  # what is dropped must be taken over again, should the version be deleted
    journal.forget(plan.ids(), plan.requests)


def shard_files(folder: Location, shard: ShardName) -> ShardFiles:
    """A shard's files in a version's folder."""
    return ShardFiles(folder, shard.split, shard.index, shard.of)


def _drop_stale(folder: Location, plan: LabelPlan) -> None:
    """Remove the shards that another plan left in a version that was not finished."""
    _drop_shards(folder, kept={shard_files(folder, name).name for name in plan.names})


def _drop_shards(folder: Location, kept: Set[str] = frozenset()) -> None:
    """Remove the shards' files of a version that is not finished, but for some; files of others stay."""
    for part in ("data", "rejected"):
        for file in (folder / part).glob("*"):
            ours = SHARD_NAME.fullmatch(file.name) or _HALF_WRITTEN.fullmatch(file.name)
            if ours and file.name not in kept:
                file.unlink()


def _begin_retry(retry: Retry, plan: LabelPlan, journal: Journal, folder: Location) -> None:
    """Forget the rejections that are asked for again, once: a run that goes on after a stop keeps what it has got since."""
    begun = f"{plan.sha256} {folder.name}"
    if journal.noted(_RETRYING) == begun:
        return
    journal.drop_rejections(retry)
    _drop_shards(folder)  # they are written anew: their answers are in the journal
    if (newest := same_version(folder.parent, plan, journal)) is not None:
        taken = take_all_but(retry, plan, journal, newest)
        journal.note(_ADOPTED, " ".join([plan.sha256, *([newest.manifest.label] if taken else [])]))
    journal.note(_RETRYING, begun)


def _adopt(plan: LabelPlan, journal: Journal, soft: EncodingName | None, earlier: Sequence[Dataset]) -> list[str]:
    """Take answers to this plan's requests out of earlier versions into the journal, once a plan; the new one's parents."""
    noted, _, parents = (journal.noted(_ADOPTED) or "").partition(" ")
    if noted == plan.sha256:
        return parents.split()
    taken = take_over(plan, journal, [version for version in earlier if encoding_of(version.manifest.soft) == soft])
    journal.note(_ADOPTED, " ".join([plan.sha256, *taken]))
    return taken
