"""Recipes: what is refused, in which words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import RecipeError
from stillhouse.recipe.load import Recipe, load_recipe, recipe_from

MINIMAL: dict[str, Any] = {
    "name": "r",
    "prompts": {"source": "p.jsonl"},
    "teacher": {"kind": "scripted"},
    "dataset": {"name": "d"},
}


def refusal(**parts: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from({**MINIMAL, **parts}, "r.yaml")
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"labell": {}}, "labell: there is no such setting. Did you mean 'label'?"),
        (
            {"label": {"sampling": {"temprature": 1}}},
            "label.sampling.temprature: there is no such setting. Did you mean 'temperature'?",
        ),
        ({"student": {"init": {"fro": "teacher"}}}, "student.init.fro: there is no such setting. Did you mean 'from'?"),
        (
            {"label": {"sampling": {"temperature": -1}}},
            "label.sampling.temperature: Input should be greater than or equal to 0 (it is -1)",
        ),
        ({"label": {"mode": "scor"}}, "label.mode: Input should be 'generate' or 'score' (it is 'scor')"),
        ({"label": {"mode": "score", "samples": 3}}, "set samples to 1"),
        ({"student": {"init": {"model": "m"}}}, "set label.soft to {encoding: top-k, k: 32}"),
        ({"student": {"init": {}}}, "give exactly one of"),
        ({"student": {"init": {"from": "teacher"}}}, "`from: teacher` needs what is to be kept of it"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"teacher": {"kind": "vllm", "finetune": {}}}, "finetune is set and kind is 'vllm'"),
        (
            {"teacher": {"kind": "transformers", "finetune": {"trian": {}}}},
            "teacher.finetune.trian: there is no such setting. Did you mean 'train'?",
        ),
        ({"teacher": {"kind": "transformers", "finetune": {"name": "a/b"}}}, "teacher.finetune.name: String should"),
        (
            {"teacher": {"kind": "transformers", "finetune": {"root": "data/students"}}},
            "teacher.finetune.root is 'data/students' and its name 'r', where the students lie",
        ),
        (
            {"evaluate": {"baselines": ["golden"]}},
            "evaluate.baselines.0: Input should be 'untrained', 'black-box' or 'gold'",
        ),
        ({"dataset": {}}, "dataset.name: is missing"),
        (
            {
                "label": {"soft": {"k": 4}},
                "student": {"init": {"model": "m"}, "loss": {"weight": 0, "cross_entropy_weight": 0}},
            },
            "nothing would be learnt",
        ),
    ],
)
def test_a_wrong_recipe_names_the_setting_and_the_mend(parts: dict[str, Any], words: str) -> None:
    assert words in refusal(**parts)


def test_every_wrong_setting_is_told_at_once() -> None:
    message = refusal(label={"samples": 0, "shard_size": 0})
    assert "label.samples" in message
    assert "label.shard_size" in message


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    recipe = load_recipe(file, ["label.sampling.temperature=0", "label.soft.k=4", "prompts.system=Be brief.", "seed=3"])
    assert recipe.label.sampling.temperature == 0
    assert recipe.label.soft is not None
    assert (recipe.label.soft.k, recipe.prompts.system, recipe.seed) == (4, "Be brief.", 3)


@pytest.mark.parametrize("override", ["label", "=3", "name.x=3", "label=[", "label.x.y=1"])
def test_a_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(RecipeError):
        load_recipe(file, [override])


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(file)


def test_a_missing_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml is not there"):
        load_recipe("nowhere.yaml")


def test_the_resolved_recipe_loads_back(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe()
    assert recipe_from(yaml.safe_load(recipe.as_yaml()), "saved") == recipe


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        load_recipe(file)


@pytest.mark.parametrize("path", sorted(Path("flows/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_ship_are_right(path: Path) -> None:
    assert load_recipe(path).name


def test_a_fine_tuned_teacher_has_the_recipes_name_and_seed_unless_it_says_others() -> None:
    def teacher(**finetune: Any) -> Any:
        parts = {"teacher": {"kind": "transformers", "model": "m", "revision": "v1", "finetune": finetune}, "seed": 3}
        return recipe_from({**MINIMAL, **parts}, "r.yaml").teacher

    assert (teacher().finetune.name, teacher().finetune.seed) == ("r", 3)
    assert (teacher(name="shared", seed=0).finetune.name, teacher(name="shared", seed=0).finetune.seed) == ("shared", 0)
    assert (teacher().labelling_model, teacher().labelling_revision) == ("data/teachers/r/gold", None)
    plain = teacher().model_copy(update={"finetune": None})
    assert (plain.labelling_model, plain.labelling_revision) == ("m", "v1")


def test_a_resolved_recipe_loads_back_to_itself() -> None:
    parts = {"teacher": {"kind": "transformers", "model": "m", "finetune": {"config": {"num_layers": 2}}}}
    recipe = recipe_from({**MINIMAL, **parts}, "r.yaml")
    assert recipe_from(yaml.safe_load(recipe.as_yaml()), "again") == recipe


def test_references_are_as_prompts_where_they_say_nothing() -> None:
    prompts = {"source": "p.jsonl", "template": "p.j2", "reference": "answer", "holdout": 0.2}
    recipe = recipe_from({**MINIMAL, "prompts": prompts, "references": {"limit": 5}}, "r.yaml")
    assert recipe.gold_prompts == recipe.prompts.model_copy(update={"limit": 5})
    assert recipe_from({**MINIMAL, "prompts": prompts}, "r.yaml").gold_prompts.limit is None
    assert recipe_from(yaml.safe_load(recipe.as_yaml()), "again") == recipe


def test_what_is_held_out_is_held_out_of_the_references_too() -> None:
    with pytest.raises(RecipeError, match=r"references\.holdout is 0\.0 and prompts\.holdout 0\.1: .*leave references"):
        recipe_from({**MINIMAL, "references": {"holdout": 0.0}}, "r.yaml")
