"""`sweep` of a recipe: what is refused when it is read, and the names of its students."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.recipe.dataset import NAME
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.recipe.sweep import OTHER_SECTIONS, SweepSettings
from stillhouse.recipe.sweep_points import points
from stillhouse.stages.checks import check_distill, check_labels
from tests.conftest import MakeRecipe

RecipeFile = Callable[[Recipe], Path]
LAYERS = "student.init.layers"
ALL = {"from": "teacher", "layers": 4, "choose": "even"}


def test_every_setting_but_the_student_is_refused_by_name() -> None:
    assert set(OTHER_SECTIONS) == Recipe.model_fields.keys() - {"student"}


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (
            {"teacher.model": ["a", "b"]},
            "sweep.teacher.model: a sweep varies only settings of the student",
        ),
        (
            {"label.sampling.temperature": [0, 1]},
            "with --set label.sampling.temperature=... --set name=...",
        ),
        ({"seed": [0, 1]}, "sweep.seed: a sweep varies only settings of the student"),
        ({"layers": [2, 1]}, "sweep.layers: a sweep has no such setting."),
        ({"at_a_tim": 2, LAYERS: [2]}, "Did you mean 'at_a_time'?"),
        ({"at_a_time": 0, LAYERS: [2]}, "sweep.at_a_time is 0: it must be greater than or equal to 1"),
        ({}, "sweep: it has no setting to vary"),
        ({"at_a_time": 2}, "sweep: it has no setting to vary"),
        ({LAYERS: []}, "sweep.student.init.layers: the list is empty. Give at least one value"),
        ({LAYERS: 3}, "sweep.student.init.layers is 3: it is not a list. Give a list"),
        ({LAYERS: "321"}, "sweep.student.init.layers is '321': it is not a list"),
        ({"student.init.layrs": [2]}, "student.init.layrs: there is no such setting. Did you mean 'layers'?"),
        ({"student.los.temperature": [2]}, "student.los: there is no such setting. Did you mean 'loss'?"),
        (
            {"student.init.layers.depth": [2]},
            "layers.depth: student.init.layers is 2, which is not a mapping",
        ),
        ({LAYERS: [2, 0]}, "sweep, 0 layers: student.init.layers is 0: it must be at least 1. Give 1 or more"),
        ({"student.loss.temperature": [1, -1]}, "student.loss.temperature is -1: it must be greater than 0"),
        ({LAYERS: [2, 3, 2]}, "`2 layers` and `2 layers` are the same student"),
        ({"student.loss.temperature": [1, 1.0]}, "`temperature 1` and `temperature 1.0` are the same student"),
        (
            {"student.launch.num_processes": [1, 2]},
            "are the same student (launch and quantize do not change the weights)",
        ),
        (
            {"student.mode": ["black-box"], "student.loss.temperature": [1, 2]},
            "`mode black-box, temperature 1` and `mode black-box, temperature 2` are the same student",
        ),
        ({LAYERS: [2, 1], "student.init": [{"from": "teacher", "layers": 1}]}, "are the same student"),
    ],
)
def test_a_wrong_sweep_is_rejected_when_the_recipe_is_loaded(
    tiny_recipe: MakeRecipe, sweep: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        tiny_recipe(sweep=sweep)
    assert words in str(raised.value)


def test_a_sweep_needs_a_student(tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="the recipe test: sweep: the recipe has no `student`"):
        tiny_recipe(sweep={LAYERS: [2]}, student=None)


def test_soft_labels_are_required_if_a_student_of_the_sweep_needs_them(tiny_recipe: MakeRecipe) -> None:
    text = {"sampling": {"max_tokens": 12}}
    recipe = tiny_recipe(sweep={"student.mode": ["black-box", "gold"]}, label=text)
    assert [point.recipe.name for point in points(recipe)] == ["test-mode-black-box", "test-mode-gold"]
    assert recipe.needs_gold
    with pytest.raises(RecipeError, match=r"sweep, mode white-box: label.soft is null"):
        tiny_recipe(sweep={"student.mode": ["black-box", "white-box"]}, label=text)
    assert not tiny_recipe(sweep={LAYERS: [2]}, evaluate={"baselines": ["gold"]}).needs_gold


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({LAYERS: [2, 9]}, "sweep, 9 layers: student.init.layers is 9: the teacher has only 4"),
        (
            {"student.init": [ALL, {"from": "teacher", "layers": [0, 1, 2, 3]}]},
            "are the same student, with the same layers",
        ),
        ({LAYERS: [2, [0, 3]], "student.init.choose": ["even"]}, "Set layers to a number such as 16"),
        ({"student.loss.kind": ["forward-kl", "forwardkl"]}, "sweep, kind forwardkl: "),
    ],
)
def test_faults_that_need_the_teacher_s_config_are_found_before_labelling(
    tiny_recipe: MakeRecipe, sweep: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        check_labels(tiny_recipe(sweep=sweep))
    assert words in str(raised.value)


def test_evenly_spaced_layers_are_those_that_are_listed(tiny_recipe: MakeRecipe) -> None:
    even = {"from": "teacher", "layers": 2, "choose": "even"}
    recipe = tiny_recipe(sweep={"student.init": [even, {"from": "teacher", "layers": [0, 3]}]})
    with pytest.raises(RecipeError, match="are the same student, with the same layers of the teacher"):
        check_distill(recipe)
    check_distill(tiny_recipe(sweep={"student.init": [even, {"from": "teacher", "layers": [0, 2]}]}))


def test_several_at_a_time_and_several_processes_each_are_refused(
    tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="sweep.at_a_time is 2: student.launch is set"):
        check_distill(tiny_recipe(sweep={LAYERS: [2], "student.launch": [{"num_processes": 2}], "at_a_time": 2}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="sweep.at_a_time is 2: 2 processes were started"):
        check_distill(tiny_recipe(sweep={LAYERS: [2, 1], "at_a_time": 2}))


def test_a_point_is_what_set_would_make(tiny_recipe: MakeRecipe, recipe_file: RecipeFile) -> None:
    file = recipe_file(tiny_recipe(sweep={LAYERS: [3, 1], "student.loss.temperature": [1.5, 2]}))
    found = points(load_recipe(file))
    assert [point.label for point in found] == [
        "layers 3, temperature 1.5",
        "layers 3, temperature 2",
        "layers 1, temperature 1.5",
        "layers 1, temperature 2",
    ]
    name = "test-layers-1_temperature-1.5"
    typed = load_recipe(file, ["sweep=null", f"name={name}", "student.init.layers=1", "student.loss.temperature=1.5"])
    assert found[2].recipe == typed
    assert found[2].settings == {LAYERS: 1, "student.loss.temperature": 1.5}
    for point in found:
        assert recipe_from(yaml.safe_load(point.recipe.as_yaml()), "again") == point.recipe


def test_all_points_have_the_recipe_s_own_teacher(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    teacher = tiny_recipe().model_dump(mode="json")["teacher"] | {"finetune": {"root": str(tmp_path / "teachers")}}
    recipe = tiny_recipe(teacher=teacher, sweep={LAYERS: [2, 1]})
    for point in points(recipe):
        assert point.recipe.teacher == recipe.teacher
        assert (point.recipe.dataset, point.recipe.seed) == (recipe.dataset, recipe.seed)
    assert recipe.teacher.finetune is not None
    assert recipe.teacher.finetune.name == "test"


def test_a_size_that_is_added_or_moved_renames_no_other(tiny_recipe: MakeRecipe) -> None:
    student = {
        "init": {"from": "teacher", "layers": 2}
    }  # the layers are chosen by default, so that a list may be given

    def names(layers: list[Any]) -> dict[str, str]:
        found = points(tiny_recipe(sweep={LAYERS: layers}, student=student))
        return {point.label: point.recipe.name for point in found}

    few, more = names([3, 1]), names([1, 2, 3, [0, 2]])
    assert few == {"3 layers": "test-layers-3", "1 layer": "test-layers-1"}
    assert few.items() <= more.items()
    assert len(set(more.values())) == 4


def test_set_reaches_into_a_sweep(tiny_recipe: MakeRecipe, recipe_file: RecipeFile) -> None:
    plain, swept = recipe_file(tiny_recipe()), ["sweep.student.init.layers=[3, 2]", "sweep.at_a_time=2"]
    recipe = load_recipe(plain, swept)
    assert recipe.sweep is not None
    assert (recipe.sweep.axes, recipe.sweep.at_a_time) == ({LAYERS: (3, 2)}, 2)
    assert load_recipe(plain, [*swept, "sweep.student.init.layers=[1]"]).sweep == SweepSettings.model_validate(
        {LAYERS: [1], "at_a_time": 2}
    )
    assert load_recipe(plain, [*swept, "sweep=null"]) == load_recipe(plain)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def distinct(values: list[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


@given(st.lists(VALUES, min_size=1, max_size=6).map(distinct), st.lists(VALUES, min_size=1, max_size=4).map(distinct))
def test_names_are_folder_names_and_no_two_points_share_one(first: list[Any], second: list[Any]) -> None:
    grid = SweepSettings.model_validate({LAYERS: first, "student.train.some_key": second}).grid()
    assert len({point.slug for point in grid}) == len(grid) == len(first) * len(second)
    for point in grid:
        assert re.match(NAME, f"recipe-{point.slug}")
        assert len(point.slug) <= 80
        alone = SweepSettings.model_validate({path: [value] for path, value in point.settings.items()}).grid()
        assert alone == (point,)


def test_paths_with_one_end_are_told_apart() -> None:
    sweep = SweepSettings.model_validate({"student.loss.weight": [1], "student.train.weight": [2], LAYERS: [3]})
    assert [point.label for point in sweep.grid()] == ["loss.weight 1, train.weight 2, layers 3"]
