"""A dataset version from its first file to the moment when the journal may forget.

    folder, parents = start_version(recipe, plan, journal)      # one that was begun, or the next
    let_go(plan, journal)                                       # after its shards and its manifest

The engine writes what lies between.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Recipe
from pipeline.dataset.files import ShardFiles
from pipeline.dataset.manifest import version_label
from pipeline.dataset.store import Dataset, dataset_folder, open_dataset, started_versions, versions
from pipeline.durable import write_atomically
from pipeline.label_settings import encoding_of
from pipeline.labelling.adopt import take_over
from pipeline.labelling.former import Former, rename_kept, settle
from pipeline.labelling.journal import Journal
from pipeline.labelling.plan import LabelPlan, ShardName
from pipeline.records import EncodingName
from pipeline.storage.location import Location

_ADOPTED = "adopted"  # the journal's note of the plan whose answers were taken over from earlier versions


def same_version(base: Location, plan: LabelPlan, journal: Journal) -> Dataset | None:
    """The newest finished version of a dataset, if it was made from this very plan."""
    if not versions(base):
        return None
    newest = open_dataset(base)
    name = plan.name_of(newest.manifest, journal.noted)
    if isinstance(name, Former):
        settle(journal, name, newest.manifest.label)
    return newest if name is not None else None


def start_version(recipe: Recipe, plan: LabelPlan, journal: Journal) -> tuple[Location, list[str]]:
    """The folder of the version to write and its parents, whose answers are in the journal afterwards.

    Half-written files of a killed run, and shards cut from another plan, are gone: their answers are in the journal.
    """
    base = dataset_folder(recipe.dataset)
    finished = versions(base)
    begun = [number for number in started_versions(base) if number not in finished]
    folder = base / version_label(begun[-1] if begun else max(finished, default=0) + 1)
    _drop_stale(folder, plan)
    rename_kept(journal, plan.former, plan.renamings, base)
    parents = _adopt(plan, journal, encoding_of(recipe.label.soft), [open_dataset(base, number) for number in finished])
    write_atomically(folder / "recipe.yaml", recipe.as_yaml().encode())
    return folder, parents


def let_go(plan: LabelPlan, journal: Journal) -> None:
    """Drop a plan's answers from the journal: its version is finished and has them."""
    journal.note(_ADOPTED, "")  # what is dropped must be taken over again, should the version be deleted
    journal.forget(plan.ids(), plan.requests)


def shard_files(folder: Location, shard: ShardName) -> ShardFiles:
    """A shard's files in a version's folder."""
    return ShardFiles(folder, shard.split, shard.index, shard.of)


def _drop_stale(folder: Location, plan: LabelPlan) -> None:
    wanted = {shard_files(folder, name).name for name in plan.names}
    for part in ("data", "rejected"):
        for file in (folder / part).glob("*"):
            if file.name not in wanted:
                file.unlink()


def _adopt(plan: LabelPlan, journal: Journal, soft: EncodingName | None, earlier: Sequence[Dataset]) -> list[str]:
    """Take answers to this plan's requests out of earlier versions into the journal, once a plan; the new one's parents."""
    noted, _, parents = (journal.noted(_ADOPTED) or "").partition(" ")
    if noted == plan.sha256:
        return parents.split()
    taken = take_over(plan, journal, [version for version in earlier if encoding_of(version.manifest.soft) == soft])
    journal.note(_ADOPTED, " ".join([plan.sha256, *taken]))
    return taken
