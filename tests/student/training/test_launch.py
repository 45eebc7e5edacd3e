"""`student.launch`: checks before training, and the errors of its processes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.processes import ranks
from stillhouse.processes.supervised import SupervisedProcess
from stillhouse.progress import silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages import launch
from stillhouse.stages.checks import check_distill, check_student, student_of
from stillhouse.stages.finetune import check_finetuning
from stillhouse.stages.stages import students_to_train
from stillhouse.student.finished.folder import folder_for
from tests.conftest import MakeRecipe
from tests.process_tree import processes

MakeLaunched = Callable[..., Recipe]


@pytest.fixture
def launched(tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeLaunched:
    """Makes recipes with settings of `student.launch`; `train` are further training arguments."""
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "no-default.yaml"))

    def make(train: dict[str, Any] | None = None, **settings: Any) -> Recipe:
        student = tiny_recipe().model_dump(mode="json", by_alias=True)["student"]
        student["train"] |= train or {}
        return tiny_recipe(student=student | {"launch": settings})

    return make


def config(folder: Path, **said: Any) -> str:
    """An accelerate config file."""
    file = folder / "accelerate.yaml"
    file.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "num_processes": 2, **said}))
    return str(file)


def refused(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as raised:
        check_distill(recipe)
    assert raised.value.exit_status == 2
    return str(raised.value)


def test_launching_is_no_part_of_what_a_student_is(launched: MakeLaunched) -> None:
    plain, two = launched(), launched(num_processes=2)
    plain = plain.model_copy(update={"student": student_of(plain).model_copy(update={"launch": None})})
    one, other = (folder_for(of, student_of(of), "white-box", ["rows"]).key for of in (plain, two))
    assert one == other
    assert [student.launch for student in students_to_train(two)] == [student_of(two).launch] * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_processes": 0}, "student.launch.num_processes is 0: it must be greater than or equal to 1"),
        ({"processes": 2}, "student.launch.processes: there is no such setting. Did you mean 'num_processes'?"),
    ],
)
def test_wrong_settings_are_refused_when_the_recipe_is_read(
    launched: MakeLaunched, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        launched(**settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "student.launch.num_processes is null: there is no GPU from which to derive"),
        (
            {"config_file": "nowhere.yaml"},
            "student.launch.config_file is 'nowhere.yaml': the file does not exist. Check",
        ),
        ({"arguments": ["--cpu"]}, "it sets cpu to True. Remove that argument; set student.train.use_cpu"),
        ({"arguments": ["--use_fsdp"]}, "it sets use_fsdp to True. Remove that argument; set student.train.fsdp"),
        (
            {"arguments": ["--num-processes", 3]},
            "it sets num_processes to 3. Remove that argument; set student.launch.num_pro",
        ),
        ({"arguments": ["--mixed_precision", "bf16"]}, "it sets mixed_precision to 'bf16'"),
        ({"arguments": ["--sharded"]}, "accelerate rejects it (unrecognized arguments: --sharded)"),
        ({"arguments": ["train.py"]}, "it sets training_script to 'train.py'"),
    ],
)
def test_a_launch_that_cannot_work_is_rejected(launched: MakeLaunched, settings: dict[str, Any], words: str) -> None:
    given = {"num_processes": 2} if settings.keys() <= {"arguments"} and settings else {}
    assert words in refused(launched(**given, **settings))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"distributed_type": "FSDP"}, "distributed_type is 'FSDP' in that file. Set it to MULTI_GPU there"),
        ({"num_machines": 2}, "num_machines is 2 in that file. Set it to 1, or start `accelerate launch"),
        ({"mixed_precision": "bf16"}, "Set it to 'no' there, or student.train.bf16 to true"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_config is"),
        ({"num_processes": -1}, "student.launch.num_processes is -1: there is no GPU"),
    ],
)
def test_a_config_file_of_another_training_is_refused(
    launched: MakeLaunched, tmp_path: Path, said: dict[str, Any], words: str
) -> None:
    assert words in refused(launched(config_file=config(tmp_path, **said)))


def test_a_config_file_that_fits_is_taken(launched: MakeLaunched, tmp_path: Path) -> None:
    file = config(tmp_path, distributed_type="MULTI_GPU", mixed_precision="bf16")
    check_student(launched({"bf16": True}, config_file=file))
    (tmp_path / "accelerate.yaml").write_text("- no mapping")
    assert "it is not a mapping of settings" in refused(launched(config_file=file))


def test_more_processes_than_gpus_are_refused(launched: MakeLaunched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_gpus", lambda *_: 1)
    assert "student.launch.num_processes is 2: this machine has 1 GPU, and each process needs one" in refused(
        launched(num_processes=2)
    )
    check_student(launched())  # one for each


def test_a_different_number_of_processes_is_reported(
    launched: MakeLaunched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ranks.LAUNCH, str(tmp_path))
    assert "num_processes is 2: `accelerate launch` started 1" in refused(launched(num_processes=2))


def test_errors_of_a_teacher_s_launch_name_teacher_finetune(launched: MakeLaunched, tiny_recipe: MakeRecipe) -> None:
    teacher = tiny_recipe().model_dump(mode="json")["teacher"]
    recipe = tiny_recipe(teacher=teacher | {"finetune": {"launch": {"config_file": "nowhere.yaml"}}})
    with pytest.raises(RecipeError, match=r"teacher\.finetune\.launch\.config_file is 'nowhere.yaml': the file"):
        check_finetuning(recipe)


@pytest.mark.slow
def test_the_error_of_a_launched_command_is_raised(launched: MakeLaunched, tmp_path: Path) -> None:
    recipe = launched(num_processes=1)
    told: list[str] = []
    with pytest.raises(RecipeError) as raised:
        launch.launch(
            recipe, student_of(recipe), tmp_path, ["distill", "--set", "label.nonsense=1"], told.append, silent
        )
    assert "label.nonsense: there is no such setting" in str(raised.value)
    assert told == []  # neither the error, which is raised, nor what the launcher says of it


@pytest.mark.slow
def test_the_end_of_the_log_is_in_the_error(
    launched: MakeLaunched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_accelerate", lambda *_: ["--no-such-argument"])
    recipe = launched(num_processes=1)
    told: list[str] = []
    with pytest.raises(
        TrainingError, match=r"exited with status 2\. Read its last lines for the cause[^$]*--no-such-argument"
    ):
        launch.launch(recipe, student_of(recipe), tmp_path, ["distill"], told.append, silent)
    assert "--no-such-argument" in told[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_the_launcher_left_behind_ends_with_it(tmp_path: Path) -> None:
    """torch's launcher gives each a session of its own, and a kill of the launcher does not reach it."""
    mark = str(tmp_path)
    training = "import time; from stillhouse.processes.ranks import *; end_with_launcher(); "
    training += f"print({mark!r}, flush=True); time.sleep(9e3)"
    started = f"subprocess.Popen([sys.executable, '-c', {training!r}], start_new_session=True).wait()"
    command = [sys.executable, "-c", f"import subprocess, sys; {started}"]
    with SupervisedProcess(command, {ranks.LAUNCH: mark}) as running:
        lines = running.lines()
        assert next(lines) == mark
        (launcher,) = [one for one in processes() if one.parent == running.pid]
        os.kill(launcher.pid, signal.SIGKILL)
        assert list(lines) == []  # the log ends when whoever was left has ended
    assert [one for one in processes() if mark in one.command] == []
