"""Students and fine-tuned teachers have one writer, as datasets have; what an earlier release trained is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import Dataset
from stillhouse.errors import Busy, ReportBusy, StudentBusy
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.models import files as model_files
from stillhouse.models.files import ModelFiles
from stillhouse.progress import silent
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LaunchSettings, StudentSettings
from stillhouse.recipe.sweep_points import points
from stillhouse.stages.finetune import finetuning_of, make_gold
from stillhouse.stages.stages import distill_stage, distill_students, finetune_stage, recipe_dataset
from stillhouse.stages.sweep import ParallelChildren, PointTraining, train_in_child
from stillhouse.storage.durable import write_lock
from stillhouse.student.finished.folder import StudentFolder, read_card, student_folder
from stillhouse.student.start.store import ImportanceStore
from stillhouse.student.training.train import distill
from stillhouse.student.training.untrained import prepare_untrained
from tests.conftest import MakeRecipe
from tests.paths import EARLIER

KEYS = json.loads((EARLIER / "keys.json").read_text())  # computed by that release
Labelled = tuple[Recipe, StudentSettings, Dataset]


@contextmanager
def written_meanwhile(folder: Path, busy: type[Busy] = StudentBusy) -> Iterator[threading.Event]:
    """A thread that holds a folder until the event is set, or the block ends."""
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with write_lock(folder, busy):
            held.set()
            enough.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    try:
        yield enough
    finally:
        enough.set()
        thread.join()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with when it was changed, and what it says."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def by_distill(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> object:
    return distill(recipe, student, dataset)


def by_the_stage(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> object:
    return distill_stage(recipe, student, dataset)


def by_launched_processes(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> object:
    return distill_stage(recipe, student.model_copy(update={"launch": LaunchSettings(num_processes=2)}), dataset)


def of_the_untrained_one(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> object:
    return prepare_untrained(recipe, student)


@pytest.mark.parametrize("train", [by_distill, by_the_stage, by_launched_processes, of_the_untrained_one])
def test_a_second_training_names_the_first_and_touches_none_of_its_files(
    labelled: Labelled, train: Callable[..., object]
) -> None:
    recipe, student, dataset = labelled
    place = student_folder(recipe, student, "white-box", dataset)
    (place.work / "launch").mkdir(parents=True)
    for file in ("checkpoint-3/model.safetensors", "launch/recipe.yaml", "model/config.json"):
        (place.work / file).parent.mkdir(exist_ok=True)
        (place.work / file).write_text("of the first")
    with written_meanwhile(place.base):
        before = contents(place.base)
        with pytest.raises(
            StudentBusy, match=rf"students/test is being written by another run \(process {os.getpid()} on"
        ) as told:
            train(recipe, student, dataset)
        assert contents(place.base) == before
    assert told.value.exit_status == 1
    assert told.value.holder.startswith(f"process {os.getpid()} on ")


def test_nor_does_a_second_fine_tuning(tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> None:
    tuned = {"root": str(tmp_path / "teachers"), "train": {"num_train_epochs": 1}}
    teacher = {"kind": "transformers", "model": str(tiny_model), "finetune": tuned}
    recipe = tiny_recipe(teacher=teacher)
    tuning = finetuning_of(recipe)
    assert tuning is not None
    base = tuning.folder(make_gold(recipe)).base
    with written_meanwhile(base):
        before = contents(base)
        with pytest.raises(StudentBusy, match="teachers/test is being written by another run"):
            finetune_stage(recipe)
        assert contents(base) == before


def test_points_of_two_sweeps_that_share_a_student_are_trained_once_at_a_time(labelled: Labelled) -> None:
    recipe, _, dataset = labelled
    swept = Recipe.model_validate(
        recipe.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"sweep": {"student.init.layers": [1, 2]}}
    )
    point = points(swept)[0]
    place = student_folder(point.recipe, point.student, point.student.mode, dataset)
    with (
        written_meanwhile(place.base),
        pytest.raises(StudentBusy, match="sweep, 1 layer: .*is being written by another run"),
    ):
        train_in_child(PointTraining(point, dataset), ParallelChildren(2), print, silent)
    assert not place.work.exists()


def test_a_training_that_was_killed_is_in_nobody_s_way(labelled: Labelled, tmp_path: Path) -> None:
    recipe, student, dataset = labelled
    place = student_folder(recipe, student, "white-box", dataset)
    hold = (
        "import sys, time; from pathlib import Path; from stillhouse.storage.durable import write_lock\n"
        "from stillhouse.errors import StudentBusy\n"
        "with write_lock(Path(sys.argv[1]), StudentBusy): print('held', flush=True); time.sleep(60)"
    )
    run = [sys.executable, "-c", hold, str(place.base)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(StudentBusy, match=rf"process {first.pid} on"):
            distill(recipe, student, dataset)
        first.send_signal(signal.SIGKILL)
    assert distill(recipe, student, dataset).steps > 0


@pytest.mark.slow
def test_of_two_commands_the_second_leaves_and_the_first_ends_well(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    train = {"num_train_epochs": 4, "per_device_train_batch_size": 1, "save_steps": 5, "learning_rate": 0.001}
    init = {"from": "teacher", "layers": 2, "choose": "even"}
    recipe = tiny_recipe(student={"init": init, "train": train}, evaluate={"baselines": []})
    file = recipe_file(recipe)
    command = [sys.executable, "-m", "stillhouse"]
    subprocess.run([*command, "label", str(file), "--no-flow"], cwd=tmp_path, check=True, capture_output=True)
    distilling = [*command, "distill", str(file), "--no-flow"]
    with subprocess.Popen(distilling, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("students/test/.work-*/checkpoint-*")):
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # so that it is still at work, however slow the second begins
        second = subprocess.run(distilling, cwd=tmp_path, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 1, second.stderr
        assert f"(process {first.pid} on " in second.stderr
        first.communicate(timeout=240)
        assert first.returncode == 0
    card = read_card(tmp_path / "students/test/white-box")
    assert card is not None and card.steps >= 4


def test_a_run_holds_a_student_for_the_processes_that_it_starts(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student, dataset = labelled
    place = student_folder(recipe, student, "white-box", dataset)
    tried: list[bool] = []

    def launched(*arguments: Any) -> None:
        with pytest.raises(StudentBusy):
            distill(recipe, student, dataset)  # as another run would
        with monkeypatch.context() as started:
            started.setenv("STILLHOUSE_LAUNCH", str(place.work / "launch"))
            distill(recipe, student, dataset)
        tried.append(True)

    monkeypatch.setattr("stillhouse.stages.stages.launch", launched)
    result = distill_stage(recipe, student.model_copy(update={"launch": LaunchSettings(num_processes=2)}), dataset)
    assert (tried, result.trained) == ([True], True)


def test_one_run_measures_importance_at_a_time_and_the_other_finds_it(labelled: Labelled, tiny_model: Path) -> None:
    recipe, student, dataset = labelled
    store = ImportanceStore.of(recipe, student, ModelFiles("tiny", tiny_model), dataset)
    told: list[str] = []
    found: list[object] = []

    def second() -> None:
        with store.lock(lambda activity, done, total: told.append(activity)):
            found.append(store.read().leave_one_out)

    thread = threading.Thread(target=second)
    with store.lock(lambda *_: None):
        thread.start()
        until = time.monotonic() + 30
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        store.add(leave_one_out={"model": (1.0, 2.0)})
        assert found == []
    thread.join(30)
    assert found == [{"model": (1.0, 2.0)}]
    assert len(told) == 1 and told[0].startswith(f"Waiting for process {os.getpid()} on ")


def test_a_second_measurement_for_a_report_is_refused_and_writes_nothing(labelled: Labelled) -> None:
    recipe, _, dataset = labelled
    settings = recipe.evaluate.model_copy(update={"baselines": ()})
    recipe = recipe.model_copy(update={"evaluate": settings})
    distill_students(recipe)
    reports = Path(recipe.evaluate.reports) / recipe.name
    assert recipe.student is not None
    with written_meanwhile(reports, ReportBusy):
        before = contents(reports)
        with pytest.raises(ReportBusy, match="reports/test is being written by another run"):
            evaluate(recipe, recipe.student, dataset)
        assert contents(reports) == before


# ----------------------------------------------------------------------------------------- what an earlier release trained


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of students that an earlier release trained, in a working folder as it left it (tests/earlier)."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    monkeypatch.setattr(model_files, "_SAMPLED_WHOLE", 0)  # the model is named as one of many gigabytes is
    return load_recipe("recipes/greedy.yaml")


def place_of_student(recipe: Recipe) -> StudentFolder:
    assert recipe.student is not None
    return student_folder(recipe, recipe.student, "white-box", recipe_dataset(recipe))


def test_the_key_of_a_small_start_is_what_it_was(earlier: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_SAMPLED_WHOLE", 1 << 22)
    assert place_of_student(earlier).key == KEYS["greedy"]["white-box"]
    assert not any(one.trained for one in distill_students(earlier))


def test_a_lock_that_is_done_with_is_gone_and_only_one_is_in_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            while True:
                try:
                    with write_lock(tmp_path / "place", StudentBusy, keep_lock=False):
                        inside.append(1)
                        most.append(len(inside))
                        inside.pop()
                    break
                except StudentBusy:
                    time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert list((tmp_path / "place").iterdir()) == []


def test_students_of_an_earlier_release_are_there(earlier: Recipe) -> None:
    place = place_of_student(earlier)
    assert place.earlier_key == KEYS["greedy"]["white-box"] == "484cd7bc0d729a3004b0e910aa81c41b"
    assert place.key != place.earlier_key
    results = distill_students(earlier)
    assert [one.trained for one in results] == [False, False]
    cards = [read_card(Path(one.folder)) for one in results]
    assert [card.key for card in cards if card] == [one.card.key for one in results]
    assert place.key in [one.card.key for one in results], "they have the key of today now"
    assert [one.trained for one in distill_students(earlier)] == [False, False]


def test_once_they_have_a_key_of_today_an_edited_start_makes_another_student(
    earlier: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelFiles, "sampled_sha256", ModelFiles("model", Path("model")).sampled_sha256)
    distill_students(earlier)
    with Path("model/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    place = place_of_student(earlier)
    assert place.earlier_key == KEYS["greedy"]["white-box"]
    assert place.finished_card() is None


def test_checkpoints_of_an_earlier_release_are_gone_on_with(earlier: Recipe) -> None:
    place = place_of_student(earlier)
    left = place.base / f".work-white-box-{KEYS['greedy']['white-box'][:12]}" / "checkpoint-1"
    left.mkdir(parents=True)
    place.resume_earlier_work()
    assert (place.work / "checkpoint-1").is_dir() and not left.exists()
