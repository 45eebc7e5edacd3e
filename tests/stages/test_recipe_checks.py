"""One set of checks for every command: what `label` refuses `plan` refuses too, and all faults are told at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.errors import RecipeError, RecipeFaults, TeacherUnavailable
from stillhouse.recipe.faults import raise_all, run_checks
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_distill, check_evaluate, check_finetune, check_labels, check_plan, check_run
from stillhouse.stages.stages import plan_stage
from tests.conftest import MakeRecipe

RecipeFile = Callable[[Recipe], Path]
ALL = (plan_stage, check_plan, check_labels, check_run, check_distill, check_evaluate)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "metric": ({"evaluate": {"metrics": [{"kind": "exact-mach"}]}}, "evaluate.metrics.0.kind is 'exact-mach'"),
    "filter": ({"quality": [{"kind": "empty"}, {"kind": "lenght"}]}, "quality.1.kind is 'lenght'"),
    "loss": ({"loss": {"kind": "forward-lk"}}, "student.loss.kind is 'forward-lk'"),
    "teacher": ({"teacher": {"kind": "transfomers"}}, "teacher.kind is 'transfomers'"),
}
FIXES = {"metric": "exact-match", "filter": "length", "loss": "forward-kl", "teacher": "transformers"}


def with_parts(make: MakeRecipe, **parts: Any) -> Recipe:
    loss = parts.pop("loss", {})
    return make(student={"init": {"from": "teacher", "layers": 2, "choose": "even"}, "loss": loss}, **parts)


@pytest.mark.parametrize("what", WRONG)
def test_an_unknown_kind_is_refused_by_every_command_with_the_nearest_one(tiny_recipe: MakeRecipe, what: str) -> None:
    parts, words = WRONG[what]
    recipe = with_parts(tiny_recipe, **parts)
    for check in ALL:
        with pytest.raises(RecipeError) as raised:
            check(recipe)
        assert f"{words}: there is no such kind. Did you mean '{FIXES[what]}'?" in str(raised.value), check


def test_all_faults_of_a_recipe_are_reported_together(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = {key: value for own, _ in WRONG.values() for key, value in own.items()}
    parts["evaluate"] = {"metrics": [{"kind": "exact-mach"}, "exact-match", {"kind": "rouge", "variant": "x"}]}
    parts["quality"] = [{"kind": "lenght"}, {"kind": "length", "most": 1}]
    recipe = with_parts(tiny_recipe, **parts)
    words = [words.replace("quality.1", "quality.0") for _, words in WRONG.values()]
    words += ["evaluate.metrics.rouge.variant is 'x': ", "quality.length.most: there is no such setting."]
    for check in (plan_stage, check_labels, check_run):
        with pytest.raises(RecipeFaults) as raised:
            check(recipe)
        told = str(raised.value)
        assert not [one for one in words if one not in told], told
        assert told.startswith(f"the recipe has {len(words)} faults:\n  "), told
        assert told.count("teacher.kind is") == 1  # met by two checks, told once
    assert not (tmp_path / "labels").exists()


def test_what_labelling_would_refuse_of_the_teacher_is_refused_by_the_plan(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe(
        teacher={"kind": "scripted", "options": {"vocabulry": 1}},
        label={"response_format": {"json_schema": {"schema": {"type": 3}}}},
    )
    with pytest.raises(RecipeFaults) as raised:
        plan_stage(recipe)
    assert "teacher.options.vocabulry" in str(raised.value)
    assert "label.response_format.json_schema.schema" in str(raised.value)


def test_a_fault_of_every_student_of_a_sweep_is_told_once_and_each_own_one_too(tiny_recipe: MakeRecipe) -> None:
    recipe = with_parts(tiny_recipe, sweep={"student.init.layers": [2, 9, 11]}, loss={"kind": "forward-lk"})
    with pytest.raises(RecipeFaults) as raised:
        check_labels(recipe)
    told = str(raised.value)
    assert told.count("'forward-lk'") == 1
    assert "sweep, 9 layers: student.init.layers is 9" in told
    assert "sweep, 11 layers: student.init.layers is 11" in told


@pytest.mark.parametrize("layers", [[2, 9], [9, 11]])
def test_a_count_of_layers_that_the_teacher_does_not_have_is_reported_once(
    tiny_recipe: MakeRecipe, layers: list[int]
) -> None:
    recipe = with_parts(tiny_recipe, sweep={"student.init.layers": layers, "student.loss.temperature": [1, 2]})
    for check in (check_plan, check_run):
        with pytest.raises(RecipeError) as raised:
            check(recipe)
        assert str(raised.value).count("student.init.layers is 9") == 1
        assert str(raised.value).count("the teacher has only 4 layers") == sum(count > 4 for count in layers)
        assert "sweep, layers 9, temperature 1: student.init.layers is 9" in str(raised.value)


def test_a_model_that_is_not_there_is_told_only_where_nothing_is_wrong() -> None:
    away, wrong = TeacherUnavailable("away"), RecipeError("wrong")

    def raising(error: Exception) -> Callable[[], None]:
        def check() -> None:
            raise error

        return check

    with pytest.raises(RecipeError, match="^wrong$"):
        run_checks(raising(away), raising(wrong))
    with pytest.raises(TeacherUnavailable, match="^away$"):
        run_checks(raising(away), raising(TeacherUnavailable("far")))
    with pytest.raises(RecipeFaults) as raised:
        run_checks(raising(RecipeFaults.of([wrong, RecipeError("odd\nvery")])), raising(wrong))
    assert str(raised.value) == "the recipe has 2 faults:\n  wrong\n  odd\n  very"
    raise_all([])


def test_a_defect_is_no_fault_of_the_recipe() -> None:
    with pytest.raises(ZeroDivisionError):
        run_checks(lambda: 1 / 0)


@pytest.mark.parametrize("command", ["plan", "label", "run", "distill", "evaluate"])
def test_commands_end_with_status_2(
    tiny_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    file = recipe_file(with_parts(tiny_recipe, evaluate={"metrics": ["nonsense"]}, quality=[{"kind": "nonsense"}]))
    done = CliRunner().invoke(app, [command, str(file)])
    assert done.exit_code == 2
    assert "the recipe has 2 faults:" in done.stderr
    assert {"evaluate.metrics.0.kind", "quality.0.kind"} <= set(done.stderr.split())
    assert not (tmp_path / "labels").exists()


def test_a_fine_tuning_is_checked_the_same_way(tiny_recipe: MakeRecipe, tiny_model: Path) -> None:
    teacher = {"kind": "transformers", "model": str(tiny_model), "finetune": {"train": {"learning_rat": 1}}}
    with pytest.raises(RecipeFaults) as raised:
        check_finetune(with_parts(tiny_recipe, teacher=teacher, quality=[{"kind": "lenght"}]))
    assert "teacher.finetune.train.learning_rat" in str(raised.value)
    assert "quality.0.kind" in str(raised.value)
