"""A version is as it was written, or what is not is named: flipped, missing, extra, renamed, miscounted."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.manifest import FILE_NAME, Manifest, read_manifest, read_seal
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.verify import missing_files, verify_folder
from stillhouse.errors import DatasetRefused
from tests.dataset.made import TOP_K, completion, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = make_dataset(
        tmp_path / "labels",
        "words",
        [completion(word, soft=TOP_K) for word in ("kettle", "otter", "<script>")],
        [completion("tram", soft=TOP_K)],
        soft=TOP_K,
    )
    folder = made.folder
    assert isinstance(folder, Path)
    (folder / "recipe.yaml").write_text("name: words\n")  # as labelling leaves it; the manifest must know it
    from stillhouse.dataset.manifest import write_manifest

    write_manifest(folder, made.manifest)
    return made


def folder_of(dataset: Dataset) -> Path:
    assert isinstance(dataset.folder, Path)
    return dataset.folder


def told(folder: Path) -> list[str]:
    """What verifying a folder says, whether its manifest opens or not."""
    try:
        return verify_folder(folder, read_manifest(folder))
    except DatasetRefused as error:
        return [str(error)]


def test_every_file_is_known(dataset: Dataset) -> None:
    assert dataset.problems() == []
    seal = read_seal(dataset.folder)
    assert [entry.path for entry in seal.extras] == ["README.md", "recipe.yaml"]


def test_a_flipped_byte_is_found_wherever_it_is(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {FILE_NAME, "README.md", "recipe.yaml"}
    assert len(files) == 5
    for file in files:
        whole = file.read_bytes()
        step = 1 if len(whole) < 200 else max(1, len(whole) // 60)
        for place in {*range(0, len(whole), step), len(whole) - 1}:
            for flip in (0x01, 0x80):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
                problems = told(folder)
                assert problems, f"byte {place} of {file.name}, flipped by {flip:#x}, was not found"
                assert any(file.name in problem for problem in problems), problems
        file.write_bytes(whole)
    assert told(folder) == []


def test_every_byte_of_the_manifest_counts(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    whole = (folder / FILE_NAME).read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] = ord(" ") if whole[place] != ord(" ") else ord("\t")  # stays JSON where it can
        (folder / FILE_NAME).write_bytes(bytes(changed))
        assert told(folder), f"byte {place}: {whole[max(0, place - 30) : place + 30]!r}"


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "data/train-00000-of-00001.parquet"])
def test_a_missing_file_is_named(dataset: Dataset, name: str) -> None:
    (folder_of(dataset) / name).unlink()
    assert told(folder_of(dataset)) == [f"{name} is missing"]


@pytest.mark.parametrize("name", ["data/train-00001-of-00002.parquet", "notes.txt", ".hidden", "rejected/x.parquet"])
def test_an_extra_file_is_named(dataset: Dataset, name: str) -> None:
    extra = folder_of(dataset) / name
    extra.parent.mkdir(exist_ok=True)
    shutil.copy(folder_of(dataset) / dataset.manifest.files[0].path, extra)
    assert told(folder_of(dataset)) == [f"{name} is not in the manifest: move it to another folder"]


@pytest.mark.parametrize("name", [".DS_Store", "data/.train.parquet.77.tmp", ".gitattributes", ".cache/huggingface/x"])
def test_what_others_leave_behind_is_no_problem(dataset: Dataset, name: str) -> None:
    left = folder_of(dataset) / name
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_text("x")
    assert told(folder_of(dataset)) == []


def test_a_renamed_file_is_known_by_its_checksum(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    data = folder / "data"
    (data / "train-00000-of-00001.parquet").rename(data / "train.parquet")
    assert told(folder) == ["data/train-00000-of-00001.parquet was renamed to data/train.parquet: restore its name"]


def test_two_files_that_changed_places(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    one, two = (folder / entry.path for entry in dataset.manifest.files)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert len(told(folder)) == 2


def resealed(folder: Path, **changes: Any) -> None:
    """Rewrite the manifest with other content and a checksum that fits it: what no accident does."""
    said = json.loads((folder / FILE_NAME).read_text()) | changes | {"manifest_sha256": "0" * 64}
    said["manifest_sha256"] = said.pop("manifest_sha256")
    text = json.dumps(said, indent=2)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / FILE_NAME).write_text(text.replace("0" * 64, digest))


def test_a_wrong_row_count_is_told(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    files = json.loads((folder / FILE_NAME).read_text())["files"]
    files[0]["rows"] = 7
    resealed(folder, files=files)
    assert told(folder) == [
        "data/train-00000-of-00001.parquet has 3 rows, and the manifest lists 7",
        "manifest.json counts 3 rows of train, and its files have 7",
    ]
    files[0]["rows"] = 3
    resealed(folder, files=files, rejected={"length": 2})
    assert told(folder) == ["manifest.json counts 2 rows of rejected, and its files have 0"]


def test_a_file_with_other_rows_in_it(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    one, two = (folder / entry.path for entry in dataset.manifest.files)
    one.write_bytes(two.read_bytes())
    (problem,) = told(folder)
    assert "bytes, and the manifest lists" in problem
    assert "has 1 rows, and the manifest lists 3" in problem


def test_a_newer_format_is_told_before_anything_else(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    (folder / FILE_NAME).write_text(json.dumps({"format_version": 2, "all": "else is new"}))
    assert "format version 2, and this release reads version 1" in told(folder)[0]


@pytest.mark.parametrize("lost", [["manifest_sha256"], ["extras", "manifest_sha256"]])
def test_a_manifest_that_lost_its_checksum(dataset: Dataset, lost: list[str]) -> None:
    folder = folder_of(dataset)
    said = json.loads((folder / FILE_NAME).read_text())
    for name in lost:
        del said[name]
    (folder / FILE_NAME).write_text(json.dumps(said))
    assert "its checksum is missing" in told(folder)[0]


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/data.parquet", "data/../../x", "..\\x", ""])
def test_a_manifest_names_only_files_inside(dataset: Dataset, path: str) -> None:
    said = dataset.manifest.model_dump(mode="json")
    said["files"][0]["path"] = path
    with pytest.raises(ValueError, match="not a path inside the version's folder"):
        Manifest.model_validate(said)


def test_at_a_glance(dataset: Dataset) -> None:
    folder = folder_of(dataset)
    file = folder / dataset.manifest.files[0].path
    file.write_bytes(file.read_bytes() + b"x")
    assert len(missing_files(folder, dataset.manifest)) == 1
