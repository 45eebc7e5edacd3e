"""Versions that no teacher made: what their manifest says of their rows, and what is left of one that failed."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.store import versions
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.errors import DatasetBusy
from stillhouse.records import Completion
from stillhouse.storage.durable import write_lock
from tests.dataset.made import TEACHER, completion, make_dataset

ORIGIN = Origin(made_by="import", how="rows.jsonl", teacher=TEACHER)


def plan_of(root: Path, name: str, train: list[Completion], validation: list[Completion] | None = None) -> str:
    return make_dataset(root, name, train, validation or []).manifest.plan_sha256


def test_the_plan_names_the_rows_their_order_and_their_split(tmp_path: Path) -> None:
    """A student that learns the references is known by it: other rows are another student."""
    kettle, otter = completion("kettle"), completion("otter")
    plans = [
        plan_of(tmp_path, "one", [kettle, otter]),
        plan_of(tmp_path, "two", [otter, kettle]),
        plan_of(tmp_path, "three", [kettle], [otter]),
        plan_of(tmp_path, "four", [kettle, completion("tram")]),
    ]
    assert len(set(plans)) == 4
    assert plan_of(tmp_path, "five", [kettle, otter]) == plans[0]


def test_prompts_are_counted_once_however_many_samples_they_have(tmp_path: Path) -> None:
    rows = [completion("kettle"), completion("kettle", sample=1), completion("otter")]
    manifest = make_dataset(tmp_path, "words", rows).manifest
    assert (manifest.prompts, manifest.rows) == (2, {"train": 3})
    again = make_dataset(tmp_path, "again", [completion("otter", sample=4), completion("kettle")]).manifest
    assert again.prompts_sha256 == manifest.prompts_sha256
    assert make_dataset(tmp_path, "other", [completion("tram")]).manifest.prompts_sha256 != manifest.prompts_sha256


def test_a_batch_without_rows_makes_no_file(tmp_path: Path) -> None:
    nothing = record_batch([], completion_schema(soft=None))
    with new_version(tmp_path, "words", ORIGIN) as version:
        version.add("train", record_batch([completion_row(completion("kettle"), soft=None)], nothing.schema))
        version.add("validation", nothing)
    assert [entry.kind for entry in version.dataset.manifest.files] == ["train"]


def test_a_version_that_fails_is_gone_and_its_number_is_free(tmp_path: Path) -> None:
    def fails() -> None:
        with new_version(tmp_path, "words", ORIGIN) as version:
            version.add(
                "train", record_batch([completion_row(completion("kettle"), soft=None)], completion_schema(soft=None))
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [path.name for path in (tmp_path / "words").iterdir()] == [".lock"]
    assert make_dataset(tmp_path, "words", [completion("kettle")]).manifest.version == 1
    assert versions(tmp_path / "words") == [1]


def test_two_do_not_write_one_dataset_at_once(tmp_path: Path) -> None:
    with write_lock(tmp_path / "words"), pytest.raises(DatasetBusy):
        make_dataset(tmp_path, "words", [completion("kettle")])


def test_a_licence_and_parents_stand_in_the_manifest(tmp_path: Path) -> None:
    origin = replace(ORIGIN, licence="mit", parents=("a/v001",))
    with new_version(tmp_path, "words", origin) as version:
        pass
    manifest = version.dataset.manifest
    assert (manifest.licence, manifest.parents, manifest.rows, manifest.files) == ("mit", ("a/v001",), {}, ())
