"""Datasets, journals, students and reports of version 0.1, the last whose package was called `pipeline`, are found."""

import shutil
from pathlib import Path

import pytest

import stillhouse
from tests.paths import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what it wrote, as the working folder."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "tests/release_0_1", copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("name", ["greedy", "draws", "scripted"])
def test_a_finished_dataset_is_finished(name: str, folder: Path) -> None:
    result = stillhouse.label(f"recipes/{name}.yaml", progress=stillhouse.silent)
    assert (result.fresh, result.sent, result.dataset.manifest.version) == (False, 0, 1)
    assert not result.dataset.problems()
    assert len(list(result.dataset.rows("train"))) == 5


def test_of_an_interrupted_dataset_the_answers_are_reused(folder: Path) -> None:
    result = stillhouse.label("recipes/interrupted.yaml", progress=stillhouse.silent)
    assert (result.sent, result.reused) == (4, 2)


def test_a_trained_student_and_its_report_are_not_made_again(folder: Path) -> None:
    students = stillhouse.distill("recipes/greedy.yaml", progress=stillhouse.silent)
    assert [(one.card.variant, one.trained) for one in students] == [("black-box", False), ("white-box", False)]
    assert not stillhouse.evaluate("recipes/greedy.yaml", progress=stillhouse.silent).fresh


@pytest.mark.slow
def test_a_student_answers(folder: Path) -> None:
    assert len(stillhouse.open_student("greedy", root="students").answer(["Explain fire."], max_tokens=3)) == 1
