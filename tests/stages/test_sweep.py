"""A sweep from labels to its report: what is trained, what is found, and how it ends when it is stopped."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillhouse.errors import DatasetRefused, RecipeError, StillhouseError, StudentMissing, TrainingError, UsageError
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation, evaluate_sweep
from stillhouse.labelling.engine import label
from stillhouse.progress import silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.sweep_points import points
from stillhouse.stages import sweep as sweeping
from stillhouse.stages.stages import (
    distill_stage,
    distill_students,
    evaluate_stage,
    points_to_train,
    recipe_dataset,
    run_stages,
    with_version,
)
from stillhouse.stages.sweep import ParallelChildren, train_points
from stillhouse.student.finished.folder import read_card
from stillhouse.student.training import train as training
from tests.conftest import MakeRecipe
from tests.held_trainings import hold_at_first_checkpoint, resume_when_told_to_end
from tests.paths import PYTHONPATH, ROOT
from tests.process_tree import processes
from tests.student.training.test_train import power_cut_at
from tests.warm import run_warm

LAYERS = "student.init.layers"


def swept(recipe: Recipe, **sweep: Any) -> Recipe:
    """The recipe with a sweep over these layers."""
    raw = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return Recipe.model_validate(raw | {"sweep": {LAYERS if key == "layers" else key: sweep[key] for key in sweep}})


def files_of(recipe: Recipe) -> dict[str, bytes]:
    """What lies in the students' folders, less what tells when and how fast."""
    root = Path(recipe.students)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name not in ("student.json", "README.md", "recipe.yaml", ".lock")
    }


@pytest.fixture
def recipe(tiny_recipe: MakeRecipe) -> Recipe:
    """A labelled recipe whose sweep has two sizes."""
    made = swept(tiny_recipe(), layers=[3, 1])
    asyncio.run(label(made))
    return made


def test_the_whole_way_and_again_nothing(recipe: Recipe, tmp_path: Path) -> None:
    first = run_stages(recipe)
    assert [(one.label, one.trained) for one in first.students] == [("3 layers", True), ("1 layer", True)]
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == ["test-layers-1", "test-layers-3"]
    assert sorted(path.name for path in (tmp_path / "students/test-layers-1").glob("[!.]*")) == [
        "untrained",
        "white-box",
    ]
    assert isinstance(first.evaluation, SweepEvaluation)
    assert first.evaluation.fresh
    report = first.evaluation.report
    assert [row.role for row in report.models] == ["teacher", "3 layers", "1 layer"]
    assert [one.settings for one in report.students] == [{LAYERS: 3}, {LAYERS: 1}]
    sizes = [row.parameters or 0 for row in report.models]
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(row.kl_per_token and row.agreement and row.tokens_per_second for row in report.models)
    assert [len(one.answers) for one in report.answers] == [3, 3]
    assert "1 layer" in report.choice.front
    assert "With evaluate.metrics" in first.evaluation.files.markdown.read_text()
    card = (tmp_path / "students/test-layers-1/white-box/README.md").read_text()
    assert "| **1 layer** |" in card and "| 3 layers |" in card

    drawn = first.evaluation.files.json.stat().st_mtime_ns
    again = run_stages(recipe)
    assert [one.trained for one in again.students] == [False, False]
    assert isinstance(again.evaluation, SweepEvaluation)
    assert (again.evaluation.fresh, again.evaluation.report) == (False, report)
    assert again.evaluation.files.json.stat().st_mtime_ns == drawn


def test_a_student_of_the_same_settings_and_name_is_that_of_the_sweep(recipe: Recipe) -> None:
    point = points_to_train(recipe)[1].point
    alone = distill_stage(point.recipe, point.student, recipe_dataset(recipe))
    assert alone.trained
    assert [(one.label, one.trained) for one in distill_students(recipe)] == [("3 layers", True), ("1 layer", False)]


def test_adding_a_size_trains_that_size(recipe: Recipe) -> None:
    distill_students(recipe)
    more = swept(recipe, layers=[1, 2, 3])
    with pytest.raises(
        StudentMissing, match="sweep, 2 layers: .* has no finished white-box student.*Run `stillhouse d"
    ):
        evaluate_stage(more, recipe_dataset(more))
    assert [(one.label, one.trained) for one in distill_students(more)] == [
        ("1 layer", False),
        ("2 layers", True),
        ("3 layers", False),
    ]


def test_another_share_to_keep_is_drawn_and_not_measured(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    distill_students(recipe)
    dataset = recipe_dataset(recipe)
    first = evaluate_sweep(recipe, dataset)
    other = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"keep": 0.5})})
    monkeypatch.setattr("stillhouse.evaluation.measures.held_out.measure_all", None)  # calling it would raise
    second = evaluate_sweep(other, dataset)
    assert not second.fresh
    assert second.report.choice == dataclasses.replace(first.report.choice, keep=0.5)
    assert "50%" in second.files.markdown.read_text()
    assert second.report.students == first.report.students


def test_one_student_under_two_names_is_refused_before_it_is_trained(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.stages.sweep.student_folder", lambda *_: type("Place", (), {"key": "same"}))
    with pytest.raises(RecipeError, match="`3 layers` and `1 layer` are the same student"):
        points_to_train(recipe)


def test_all_students_learn_from_the_version_that_the_recipe_names(recipe: Recipe) -> None:
    named = with_version(recipe, recipe_dataset(recipe))
    assert [point.recipe.dataset.version for point in points(named)] == [1, 1]
    assert [one.point.recipe.dataset.version for one in points_to_train(recipe)] == [1, 1]


def test_gold_students_have_the_references(recipe: Recipe) -> None:
    gold = swept(recipe, **{"student.mode": ["gold", "black-box"]})
    dataset = recipe_dataset(gold)
    with pytest.raises(StudentMissing, match="the recipe has no gold student"):
        evaluate_stage(gold, dataset)
    assert [one.card.dataset for one in distill_students(gold)] == ["words-gold/v001", "words/v001"]
    found = evaluate_sweep(gold, dataset)
    assert [one.row.role for one in found.report.students] == ["mode gold", "mode black-box"]


def test_only_students_of_a_mode(recipe: Recipe) -> None:
    assert len(points_to_train(recipe, "white-box")) == 2
    with pytest.raises(UsageError, match="--only is 'gold': the sweep has no such student. Choose from: white-box"):
        points_to_train(recipe, "gold")


def test_a_power_cut_in_the_middle(tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    student = tiny_recipe().model_dump(mode="json", by_alias=True, exclude_unset=True)["student"]
    student["train"] |= {"save_strategy": "steps", "save_steps": 1}
    recipe = swept(tiny_recipe(student=student), layers=[3, 2, 1])
    asyncio.run(label(recipe))
    unbroken = recipe.model_copy(update={"students": str(tmp_path / "unbroken")})
    distill_students(unbroken)
    distill_students(swept(recipe, layers=[3]))
    with power_cut_at(3, monkeypatch):
        distill_students(recipe)
    assert read_card(Path(recipe.students) / "test-layers-2/white-box") is None
    assert len(list(Path(recipe.students).glob("test-layers-2/.work-white-box-*/checkpoint-2"))) == 1
    assert [one.trained for one in distill_students(recipe)] == [False, True, True]
    assert files_of(recipe) == files_of(unbroken)


# ------------------------------------------------------------------------------------------------------------ side by side


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process computes with one thread, and so does each of two that share two: the number shapes the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_side_by_side_gives_the_students_of_one_after_another(recipe: Recipe, tmp_path: Path) -> None:
    one_by_one = recipe.model_copy(update={"students": str(tmp_path / "one")})
    distill_students(one_by_one)
    told: set[str] = set()
    both = swept(recipe, layers=[3, 1], at_a_time=2)
    results = distill_students(both, lambda activity, done, total: told.add(activity))
    assert [(one.label, one.trained) for one in results] == [("3 layers", True), ("1 layer", True)]
    assert told >= {"Training the white-box student, 3 layers", "Training the white-box student, 1 layer"}
    assert files_of(both) == files_of(one_by_one)
    assert [one.card.log for one in results] == [one.card.log for one in distill_students(one_by_one)]
    assert not list(Path(both.students).glob("*/.work-*"))
    assert [one.trained for one in distill_students(both)] == [False, False]


@pytest.mark.slow
def test_an_error_of_a_process_is_raised_as_it_is_and_the_others_come_to_their_end(
    recipe: Recipe, tmp_path: Path
) -> None:
    """The student of one layer has a folder that cannot be written."""
    both = swept(recipe, layers=[3, 1], at_a_time=2)
    (tmp_path / "students/test-layers-1").mkdir(parents=True)
    (tmp_path / "students/test-layers-1/untrained").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match="sweep, 1 layer: the training exited with status 1"):
        distill_students(both)
    assert read_card(tmp_path / "students/test-layers-3/white-box") is not None
    file = next((tmp_path / "labels/words/v001/data").glob("train-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    (tmp_path / "students/test-layers-1/untrained").unlink()
    with pytest.raises(DatasetRefused, match="sweep, 1 layer: "):
        distill_students(both)


def test_no_student_is_begun_after_one_has_failed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def train(training: Any, *_: Any) -> None:
        begun.append(training.point.label)
        raise TrainingError("it failed")

    monkeypatch.setattr(sweeping, "train_in_child", train)
    listed = ([0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3], [0], [1])
    many = swept(recipe, **{"student.init": [{"from": "teacher", "layers": layers} for layers in listed]})
    with pytest.raises(StillhouseError, match="it failed"):
        train_points(points_to_train(many), 2, distill_stage, silent)
    assert set(begun) < {one.point.label for one in points_to_train(many)}


@pytest.mark.parametrize(("given", "at_a_time", "share"), [("8", 2, "4"), ("8", 3, "2"), ("1", 4, "1"), ("2", 1, "2")])
def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch, given: str, at_a_time: int, share: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    children = ParallelChildren(at_a_time)
    assert children.environment(0) == {"OMP_NUM_THREADS": share}
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert children.environment(0) == {"OMP_NUM_THREADS": str(8 // at_a_time)}


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    children = ParallelChildren(3)
    assert [children.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [children.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["5", "7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert "CUDA_VISIBLE_DEVICES" not in children.environment(0)


@pytest.fixture
def long(tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]) -> Path:
    """A labelled recipe file whose two students train side by side, for long."""
    student = tiny_recipe().model_dump(mode="json", by_alias=True, exclude_unset=True)["student"]
    student["train"] |= {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 12}
    made = swept(tiny_recipe(student=student), layers=[3, 1], at_a_time=2)
    asyncio.run(label(made))
    return recipe_file(made)


def trainings_of(recipe: Path) -> list[int]:
    """The processes that train for a recipe."""
    mark = f"{recipe.parent}/students/"
    return [one.pid for one in processes() if mark in one.command and "distill" in one.command]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_its_processes_end_and_it_goes_on(long: Path, stop: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse", "distill", str(long), "--no-flow"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    students = [tmp_path / "students/test-layers-3", tmp_path / "students/test-layers-1"]
    held = hold_at_first_checkpoint(students, lambda: running.poll() is None)
    assert len(held) == 2, running.communicate()
    running.send_signal(stop)
    resume_when_told_to_end(held)  # after SIGKILL nobody ends them: they notice
    _, said = running.communicate(timeout=60)
    while trainings_of(long):  # what started them ends after them
        time.sleep(0.05)
    if stop == signal.SIGINT:
        assert running.returncode == 130
        assert "Continue with: stillhouse distill" in said
        assert "Traceback" not in said
    assert not list((tmp_path / "students").glob("*/white-box"))
    done = run_warm(["distill", long, "--no-flow", "--json"], ROOT)
    assert done.returncode == 0, done.stderr
    students = json.loads(done.stdout)["students"]
    assert [(one["label"], one["trained"]) for one in students] == [("3 layers", True), ("1 layer", True)]
    begun = [line for line in done.stderr.splitlines() if line.startswith("Training the white-box student, 3 layers: ")]
    assert int(begun[0].split()[-3]) > 1  # it did not begin anew


# ------------------------------------------------------------------------------------------------------- the command line


def stillhouse(*arguments: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "PREFECT_HOME": str(folder / "prefect")}
    return run_warm(arguments, folder, environment)


@pytest.mark.slow
def test_the_commands_know_a_sweep(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    file = recipe_file(tiny_recipe())
    given = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(given | {"sweep": {LAYERS: [2, 1]}}))
    ran = stillhouse("run", file, "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert [(one["label"], one["recipe"]) for one in result["students"]] == [
        ("2 layers", "test-layers-2"),
        ("1 layer", "test-layers-1"),
    ]
    assert [one["row"]["role"] for one in result["report"]["students"]] == ["2 layers", "1 layer"]
    assert [Path(name).name for name in result["report"]["files"]] == ["sweep.md", "sweep.html", "sweep.json"]
    shown = stillhouse("evaluate", file, folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "because the recipe has no task metric" in shown.stdout
    assert "sweep.html" in shown.stdout
    found = stillhouse("distill", file, folder=tmp_path)
    assert found.stdout.count("already trained") == 2


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"teacher.model": ["a"]}, "sweep.teacher.model: a sweep varies only settings of the student"),
        ({LAYERS: [2, 2]}, "`2 layers` and `2 layers` are the same student"),
        ({LAYERS: [2, 9]}, "sweep, 9 layers: student.init.layers is 9: the teacher has only 4 layers"),
        ({LAYERS: []}, "student.init.layers: the list is empty"),
    ],
)
@pytest.mark.slow
def test_a_wrong_sweep_ends_with_status_2_and_nothing_is_written(
    tiny_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    sweep: dict[str, Any],
    words: str,
) -> None:
    file = recipe_file(tiny_recipe())
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"sweep": sweep}))
    done = stillhouse("run", file, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    for folder in ("labels", "students", "data"):
        assert not (tmp_path / folder).exists()


@pytest.mark.slow
def test_a_student_of_a_sweep_is_launched_as_its_own_recipe(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """`student.launch` starts accelerate for each student, with the point's recipe."""
    launched = swept(recipe, layers=[2, 1], **{"student.launch": [{"num_processes": 1}]})
    monkeypatch.setattr(training, "StudentTrainer", None)  # nothing is trained in this process
    results = distill_students(launched)
    assert [one.trained for one in results] == [True, True]
    assert [Path(one.folder).parent.name for one in results] == [
        f"test-layers-{layers}_launch-{points_to_train(launched)[0].point.recipe.name.rpartition('-')[2]}"
        for layers in (2, 1)
    ]
