"""Files that Stillhouse did not write: beside its own they stay, and in its way they are named, whatever is removed."""

import asyncio
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset import catalog as catalog_module
from stillhouse.dataset.manifest import FILE_NAME
from stillhouse.errors import UsageError
from stillhouse.evaluation.report.report import ReportFiles, write_report
from stillhouse.exchange.lines import NOTE
from stillhouse.labelling.engine import label
from stillhouse.processes.children import run_command
from stillhouse.progress import silent
from stillhouse.student.finished.folder import CARD, StudentCard, StudentFolder
from tests.conftest import MakeRecipe
from tests.dataset.made import completion, make_dataset
from tests.evaluation.reports import SEPARATE

THEIRS = "theirs"


def datasets(root: Path, *arguments: object) -> Result:
    done = CliRunner().invoke(app, ["datasets", *map(str, arguments), "--root", str(root)])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done


@pytest.mark.parametrize("name", ["notes.txt", "data/extra.csv", "plots/one.png", ".env", "data/train.parquet"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_version_with_files_of_others_is_not_removed(tmp_path: Path, name: str, finished: bool) -> None:
    folder = tmp_path / "words/v001"
    make_dataset(tmp_path, "words", [completion("kettle")])
    foreign = folder / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text(THEIRS)
    if not finished:
        (folder / FILE_NAME).unlink()
    before = sorted(folder.rglob("*"))
    done = datasets(tmp_path, "rm", "words/v001", "--yes")
    assert (done.exit_code, name in done.stderr) == (1, True), done.stderr
    assert sorted(folder.rglob("*")) == before
    foreign.unlink()
    if foreign.parent.name == "plots":
        foreign.parent.rmdir()
    assert datasets(tmp_path, "rm", "words/v001", "--yes").exit_code == 0
    assert not folder.exists()


def test_a_version_that_is_a_link_is_not_removed(tmp_path: Path) -> None:
    make_dataset(tmp_path / "elsewhere", "words", [completion("kettle")])
    (tmp_path / "labels/words").mkdir(parents=True)
    (tmp_path / "labels/words/v001").symlink_to(tmp_path / "elsewhere/words/v001")
    done = datasets(tmp_path / "labels", "rm", "words", "--yes")
    assert (done.exit_code, "is a symbolic link to" in done.stderr) == (1, True)
    assert (tmp_path / "elsewhere/words/v001" / FILE_NAME).is_file()


def test_what_a_killed_writer_and_a_system_left_goes_with_the_version(tmp_path: Path) -> None:
    make_dataset(tmp_path, "words", [completion("kettle")])
    folder = tmp_path / "words/v001"
    for name in ("data/.train-00000-of-00001.parquet.77.tmp", ".DS_Store", "data/train-00003-of-00009.parquet"):
        (folder / name).write_text("ours")
    assert datasets(tmp_path, "rm", "words", "--yes").exit_code == 0
    assert not folder.exists()


def test_the_catalog_is_read_once_to_remove_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kettle", "otter", "tram"):
        make_dataset(tmp_path, "words", [completion(name)])
    whole, reads = catalog_module.catalog, []
    monkeypatch.setattr(catalog_module, "catalog", lambda root: reads.append(root) or whole(root))
    assert datasets(tmp_path, "rm", "words", "--all", "--yes").exit_code == 0
    assert reads == [tmp_path]
    assert whole(tmp_path) == []


def test_labelling_goes_on_in_a_version_and_keeps_files_of_others(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe()
    folder = Path(recipe.dataset.root) / recipe.dataset.name / "v001"
    stale = folder / "data/train-00000-of-00777.parquet"
    half = folder / "data/.train-00000-of-00777.parquet.1.tmp"
    foreign = folder / "data/prompts.csv"
    stale.parent.mkdir(parents=True)
    for file in (stale, half, foreign):
        file.write_text(THEIRS)
    asyncio.run(label(recipe))
    assert (folder / FILE_NAME).is_file()
    assert (stale.exists(), half.exists(), foreign.read_text()) == (False, False, THEIRS)


@pytest.mark.parametrize("note", [None, "{}", '{"stillhouse": "0"}'])
def test_an_export_replaces_only_what_an_export_wrote(tmp_path: Path, note: str | None) -> None:
    make_dataset(tmp_path, "words", [completion("kettle")])
    out = tmp_path / "out"
    command = ["export", "words", "--to", "trl", "--out", out, "--force"]
    assert datasets(tmp_path, *command).exit_code == 0
    assert datasets(tmp_path, *command).exit_code == 0
    (out / "notes.txt").write_text(THEIRS)
    if note is not None:
        (out / NOTE).write_text(note)
    done = datasets(tmp_path, *command)
    assert (done.exit_code, "notes.txt" in done.stderr) == (2, True), done.stderr
    assert (out / "notes.txt").read_text() == THEIRS


def test_a_page_is_not_written_over_another_file(tmp_path: Path) -> None:
    make_dataset(tmp_path, "words", [completion("kettle")])
    page, thesis = tmp_path / "page.html", tmp_path / "thesis.html"
    thesis.write_text("<title>My thesis</title>")
    for _ in range(2):  # the second page over the first
        assert datasets(tmp_path, "show", "words", "--html", page).exit_code == 0
    done = datasets(tmp_path, "show", "words", "--html", thesis)
    assert (done.exit_code, "is not a dataset page" in done.stderr) == (2, True)
    assert thesis.read_text() == "<title>My thesis</title>"


@pytest.mark.parametrize("name", ["report.md", "report.html", "report.json"])
def test_a_report_is_not_written_over_another_file(tmp_path: Path, name: str) -> None:
    files = ReportFiles.in_folder(tmp_path)
    (tmp_path / name).write_text(THEIRS)
    with pytest.raises(UsageError, match=name):
        files.refuse_foreign_files()
    (tmp_path / name).unlink()
    write_report(SEPARATE, tmp_path)
    files.refuse_foreign_files()
    for removed in (files.json, files.html):  # a report of which a part is missing is still ours
        content = removed.read_bytes()
        removed.unlink()
        files.refuse_foreign_files()
        removed.write_bytes(content)


def test_a_student_takes_no_other_folders_place(tmp_path: Path) -> None:
    place = StudentFolder(tmp_path, "white-box", "a" * 64)
    assert place.finished_card() is None
    place.path.mkdir()
    assert place.finished_card() is None
    (place.path / "model.safetensors").write_text(THEIRS)
    with pytest.raises(UsageError, match=f"contains other files and no {CARD}"):
        place.finished_card()


def test_a_newer_student_takes_over_files_of_others(tmp_path: Path) -> None:
    place = StudentFolder(tmp_path, "white-box", "b" * 64)
    for number, weights in enumerate(("model-00001-of-00002.safetensors", "model.safetensors")):
        made = place.work / "model"
        made.mkdir(parents=True)
        (made / weights).write_text(weights)
        place.publish(made, _card(place.key))
        (place.path / f"my scores {number}.csv").write_text(THEIRS)
    found = sorted(file.name for file in place.path.iterdir())
    assert found == ["model.safetensors", "my scores 0.csv", "my scores 1.csv", CARD]
    assert [file.name for file in tmp_path.iterdir()] == ["white-box"]


def test_a_launched_command_removes_nothing_of_others(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "launch"
    (folder / "kept").mkdir(parents=True)
    (folder / "notes.txt").write_text(THEIRS)
    (folder / "failure.json").write_text("{}")
    run_command(scripted_recipe(), folder, ["true"], lambda line: None, silent, what="it")
    assert sorted(one.name for one in folder.iterdir()) == ["kept", "notes.txt", "recipe.yaml"]


def test_the_demo_teacher_is_not_put_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text(THEIRS)
    done = CliRunner().invoke(app, ["teacher", "fetch-demo", "--folder", str(tmp_path)])
    assert (done.exit_code, "Give a new or an empty folder" in done.stderr) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]


def _card(key: str) -> StudentCard:
    return StudentCard(
        recipe="words",
        variant="white-box",
        key=key,
        dataset="words/v001",
        parameters=1,
        megabytes=1.0,
        steps=1,
        kept_step=None,
        training={},
        rows=1,
        rows_too_long=0,
        seconds=1.0,
        created_at="2026-01-01T00:00:00+00:00",
        versions={},
        log=(),
    )
