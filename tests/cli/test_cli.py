"""The command line as a hurried user meets it: real processes, exit statuses, what stands on which stream."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse import __version__
from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe
from tests.warm import run_warm

Stillhouse = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stillhouse(tmp_path: Path) -> Stillhouse:
    """Runs the command in a folder far from the clone, with no Prefect configured; with `fresh`, in a new interpreter."""

    def run(*arguments: object, fresh: bool = False, **environment: str) -> "subprocess.CompletedProcess[str]":
        variables = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "HF_HUB_OFFLINE": "1", **environment}
        if not fresh:
            return run_warm(arguments, tmp_path, variables)
        command = [sys.executable, "-m", "stillhouse", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return run


def test_help_lists_the_commands(stillhouse: Stillhouse) -> None:
    done = stillhouse("--help", fresh=True)
    assert done.returncode == 0
    for command in ("run", "plan", "finetune", "label", "distill", "evaluate", "datasets", "teacher"):
        assert command in done.stdout


def test_version(stillhouse: Stillhouse) -> None:
    done = stillhouse("--version", fresh=True)
    assert (done.returncode, done.stdout) == (0, f"stillhouse {__version__}\n")


def test_the_whole_way(stillhouse: Stillhouse, tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]) -> None:
    recipe = recipe_file(tiny_recipe())
    first = stillhouse("run", recipe, "--json", fresh=True)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["labels"]["sent"] == 12
    assert [student["variant"] for student in result["students"]] == ["black-box", "white-box"]
    roles = [model["role"] for model in result["report"]["models"]]
    assert roles == ["teacher", "untrained student", "black-box student", "white-box student"]
    for file in result["report"]["files"]:
        assert Path(recipe.parent, file).is_file()
    teacher, *students = result["report"]["models"]
    assert teacher["kl_per_token"]["mean"] == 0
    for student in students:
        assert student["kl_per_token"]["low"] <= student["kl_per_token"]["mean"] <= student["kl_per_token"]["high"]
        assert student["parameters"] < teacher["parameters"]
    assert "Labelling: 12 of 12" in first.stderr

    again = stillhouse("run", recipe, "--json")
    result = json.loads(again.stdout)
    assert result["labels"]["sent"] == 0
    assert not any(student["trained"] for student in result["students"])
    assert result["report"]["fresh"] is False
    table = stillhouse("evaluate", recipe)
    assert table.returncode == 0
    assert re.search(r"teacher +student +student +student\n", table.stdout)  # above: untrained, black-box, white-box
    assert "report.html" in table.stdout


def test_stages_one_by_one(
    stillhouse: Stillhouse, tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = recipe_file(tiny_recipe())
    early = stillhouse("distill", recipe)
    assert early.returncode == 1
    assert "Run `stillhouse label`" in early.stderr
    assert stillhouse("label", recipe).returncode == 0
    early = stillhouse("evaluate", recipe)
    assert early.returncode == 1
    assert "Run `stillhouse distill`" in early.stderr
    done = stillhouse("distill", recipe, "--set", "evaluate.baselines=[untrained]")
    assert done.returncode == 0, done.stderr
    assert "white-box" in done.stdout
    assert "black-box" not in done.stdout


@pytest.mark.slow
def test_a_teacher_that_is_fine_tuned_first(
    stillhouse: Stillhouse, tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    plain = recipe_file(tiny_recipe())
    none = stillhouse("finetune", plain)
    assert (none.returncode, "teacher.finetune is null" in none.stderr) == (2, True)
    teacher = parts["teacher"] | {"finetune": {"root": str(tmp_path / "teachers"), "train": parts["student"]["train"]}}
    recipe = recipe_file(tiny_recipe(teacher=teacher))
    planned = stillhouse("plan", recipe)
    assert planned.returncode == 0, planned.stderr
    assert "not fine-tuned yet" in planned.stderr
    assert "12 to send" in planned.stdout
    early = stillhouse("label", recipe)
    assert early.returncode == 1
    assert "Run `stillhouse finetune`" in early.stderr
    assert not (tmp_path / "labels").exists()
    done = stillhouse("finetune", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert "Fine-tuning the teacher: 6 of 6" in done.stderr
    assert json.loads(done.stdout)["teacher"]["trained"] is True
    again = stillhouse("finetune", recipe)
    assert re.search(r"^teacher +.*teachers/test/gold: .* already trained", again.stdout, re.M)
    assert stillhouse("label", recipe).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "status", "words"),
    [
        (["teacher.finetune.train={learning_rat: 1}"], 2, "teacher.finetune.train.learning_rat: there is no such"),
        (["prompts.reference=gold"], 2, "prompts.reference is 'gold'"),
        (["label.sampling.temprature=1"], 2, "Did you mean 'temperature'?"),
        (["prompts.source=none.jsonl"], 2, "the file does not exist"),
        (["teacher.kind=transformer"], 2, "Did you mean 'transformers'?"),
        (["teacher.model=no/such-model"], 1, "no folder has this path"),
        (["quality=[{kind: lenght}]"], 2, "Did you mean 'length'?"),
        (["student.train={learning_rat: 1}"], 2, "Did you mean 'learning_rate'?"),
        (["student.loss.kind=forwardkl"], 2, "Did you mean 'forward-kl'?"),
    ],
)
def test_wrong_input_is_reported_in_a_line_and_nothing_is_written(
    stillhouse: Stillhouse,
    tiny_recipe: MakeRecipe,
    recipe_file: Callable[[Recipe], Path],
    tmp_path: Path,
    overrides: list[str],
    status: int,
    words: str,
) -> None:
    sets = [part for override in overrides for part in ("--set", override)]
    done = stillhouse("run", recipe_file(tiny_recipe()), *sets)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "labels").exists()
    assert not (tmp_path / "students").exists()
    assert not (tmp_path / "data").exists()


def test_an_error_is_one_json_object_with_json(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = recipe_file(scripted_recipe())
    done = stillhouse("label", recipe, "--set", "label.mode=scor", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert json.loads(done.stdout).keys() == {"error"}
    assert (error["kind"], error["setting"], error["value"]) == ("RecipeError", "label.mode", "scor")
    assert done.stderr.strip().endswith(error["message"])
    assert stillhouse("label", recipe, "--set", "label.mode=scor").stdout == ""


def test_a_missing_dataset_and_a_system_error_are_json_too(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    missing = stillhouse("datasets", "show", "nothing", "--root", "labels", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["error"]["kind"]) == (1, "DatasetMissing")
    (tmp_path / "labels").write_text("a file where the folder should be")
    unwritable = stillhouse("label", recipe_file(scripted_recipe()), "--json")
    assert unwritable.returncode == 1
    assert json.loads(unwritable.stdout)["error"]["message"] in unwritable.stderr


def test_too_many_rejections_end_with_status_3(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = recipe_file(scripted_recipe(quality=[{"kind": "length", "max_tokens": 1}]))
    done = stillhouse("label", recipe)
    assert done.returncode == 3
    assert "label.max_rejected is 5.0%" in done.stderr
    assert stillhouse("label", recipe, "--set", "label.max_rejected=1").returncode == 0


def test_plan_says_what_would_be_sent_and_sends_nothing(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    recipe = recipe_file(scripted_recipe())
    planned = stillhouse("plan", recipe, "--json")
    assert planned.returncode == 0, planned.stderr
    assert (json.loads(planned.stdout)["to_send"], (tmp_path / "labels").exists()) == (12, False)
    assert stillhouse("label", recipe).returncode == 0
    table = stillhouse("plan", recipe)
    assert "12 answered already, nothing to send" in table.stdout


def test_datasets_list_show_verify(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    assert "no finished dataset" in stillhouse("datasets", "list", "--root", "labels").stdout
    assert stillhouse("label", recipe_file(scripted_recipe())).returncode == 0
    listed = json.loads(stillhouse("datasets", "list", "--root", "labels", "--json").stdout)
    assert [dataset["dataset"] for dataset in listed["datasets"]] == ["words/v001"]
    assert "words/v001" in stillhouse("datasets", "show", "words", "--root", "labels").stdout
    assert stillhouse("datasets", "verify", "words", "--root", "labels").returncode == 0
    file = next((tmp_path / "labels/words/v001/data").glob("train-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    broken = stillhouse("datasets", "verify", "words", "--root", "labels")
    assert broken.returncode == 1
    assert file.name in broken.stderr
    assert stillhouse("datasets", "show", "nothing", "--root", "labels").returncode == 1


@pytest.mark.parametrize("started", ["", 'trap "" INT; '], ids=["by hand", "by a script, with &"])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_continue(
    tiny_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path, stop: signal.Signals, started: str
) -> None:
    parts: dict[str, Any] = {"sampling": {"temperature": 1.0, "max_tokens": 200}, "soft": {"k": 16}, "shard_size": 2}
    recipe = recipe_file(tiny_recipe(label=parts))
    run = [sys.executable, "-m", "stillhouse", "run", str(recipe), "--no-flow"]
    command = ["sh", "-c", f'{started}exec "$@"', "sh", *run]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first line of progress
        time.sleep(0.2)
        process.send_signal(stop)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Continue with: stillhouse run" in told
    assert "Traceback" not in told


def test_a_folder_that_cannot_be_written_is_reported(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    (tmp_path / "labels").write_text("a file where the folder should be")
    done = stillhouse("label", recipe_file(scripted_recipe()))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "labels") in done.stderr


def test_a_configured_prefect_api_is_used(
    stillhouse: Stillhouse, scripted_recipe: MakeRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = recipe_file(scripted_recipe())
    nowhere = stillhouse("label", recipe, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert nowhere.returncode == 1
    assert stillhouse("label", recipe, "--no-flow", PREFECT_API_URL="http://127.0.0.1:9/api").returncode == 0
