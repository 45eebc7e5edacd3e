"""Errors of wrong recipes: the setting, its value and the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import RecipeError, RecipeFaults
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe, recipe_from

MINIMAL: dict[str, Any] = {
    "name": "r",
    "prompts": {"source": "p.jsonl"},
    "teacher": {"kind": "scripted"},
    "dataset": {"name": "d"},
}


def refusal(**parts: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        recipe_from({**MINIMAL, **parts}, "r.yaml")
    assert caught.value.exit_status == 2
    return caught.value


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
            "label.sampling.temperature is -1: it must be greater than or equal to 0",
        ),
        ({"quality": "empty"}, "quality is 'empty': it must be a list"),
        ({"quality": ["empty"]}, "quality.0 is 'empty': it must be a mapping of settings"),
        ({"label": None}, "label is null: it must be a mapping of settings"),
        ({"name": 3}, "name is 3: it must be text"),
        ({"label": {"soft": 5}}, "label.soft is 5: it must be a mapping of settings"),
        ({"quality": 3}, "quality is 3: it must be a list"),
        ({"teacher": {"options": 3}}, "teacher.options is 3: it must be a mapping"),
        ({"label": {"mode": "scor"}}, "label.mode is 'scor': it must be 'generate' or 'score'"),
        (
            {"label": {"mode": "score", "samples": 3}},
            "label.samples is 3: mode is 'score', and scoring",
        ),
        (
            {"student": {"init": {"model": "m"}}},
            "label.soft is null: student.mode is 'white-box'",
        ),
        ({"student": {"init": {}}}, "student.init: none of `from`, `model` and `config` is given. Give exactly one of"),
        (
            {"student": {"init": {"from": "teacher"}}},
            "to keep are not given. Give `layers`",
        ),
        ({"name": "../x"}, "the recipe r.yaml: name is '../x': it must match pattern"),
        (
            {"teacher": {"kind": "vllm", "finetune": {}}},
            "teacher.kind is 'vllm': teacher.finetune is",
        ),
        (
            {"teacher": {"kind": "transformers", "finetune": {"trian": {}}}},
            "teacher.finetune.trian: there is no such setting. Did you mean 'train'?",
        ),
        (
            {"teacher": {"kind": "transformers", "finetune": {"freeze": ["head"], "lora": {}}}},
            "teacher.finetune.freeze is ['head']: lora is set",
        ),
        (
            {"teacher": {"kind": "transformers", "finetune": {"name": "a/b"}}},
            "teacher.finetune.name is 'a/b'",
        ),
        (
            {"teacher": {"kind": "transformers", "finetune": {"root": "data/students"}}},
            "teacher.finetune.root is 'data/students': teacher.finetune.name is 'r', so",
        ),
        (
            {"evaluate": {"baselines": ["golden"]}},
            "evaluate.baselines.0 is 'golden': it must be 'untrained', 'black-box' or 'gold'",
        ),
        ({"dataset": {}}, "dataset.name: it is missing. Give it a value."),
        (
            {
                "label": {"soft": {"k": 4}},
                "student": {"init": {"model": "m"}, "loss": {"weight": 0, "cross_entropy_weight": 0}},
            },
            "student.loss.weight is 0.0: cross_entropy_weight is 0 too, so nothing would be learnt",
        ),
    ],
)
def test_a_wrong_recipe_names_the_setting_and_the_fix(parts: dict[str, Any], words: str) -> None:
    assert words in str(refusal(**parts))


def test_errors_of_settings_have_fields() -> None:
    error = refusal(label={"mode": "scor"})
    assert (error.setting, error.value, error.fix) == ("label.mode", "scor", None)
    error = refusal(label={"mode": "score", "samples": 3})
    assert (error.setting, error.value, error.fix) == ("label.samples", 3, "set samples to 1")
    error = refusal(student={"init": {"from": "teacher", "layers": [3, 1]}}, label={"soft": {"k": 4}})
    assert (error.setting, error.value) == ("student.init.layers", [3, 1])
    error = refusal(label={"samples": True})
    assert (error.setting, error.value) == ("label.samples", True)
    error = refusal(prompts={})
    assert (error.setting, error.fix, error.as_dict()["value"]) == ("prompts.source", "give it a value", None)


def test_all_wrong_settings_are_reported_together() -> None:
    error = refusal(label={"samples": 0, "shard_size": 0})
    assert isinstance(error, RecipeFaults)
    assert [fault.setting for fault in error.faults] == ["label.samples", "label.shard_size"]
    assert str(error).startswith("the recipe r.yaml has 2 faults:\n  label.samples is 0: ")


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    recipe = load_recipe(file, ["label.sampling.temperature=0", "label.soft.k=4", "prompts.system=Be brief.", "seed=3"])
    assert recipe.label.sampling.temperature == 0
    assert recipe.label.soft is not None
    assert (recipe.label.soft.k, recipe.prompts.system, recipe.seed) == (4, "Be brief.", 3)


@pytest.mark.parametrize("override", ["label", "=3", "name.x=3", "label=[", "label.x.y=1"])
def test_a_wrong_override_is_rejected(tmp_path: Path, override: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(RecipeError):
        load_recipe(file, [override])


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\x00"])
def test_a_file_that_is_not_a_recipe_is_rejected(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(file)


def test_a_missing_recipe_is_rejected() -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml does not exist"):
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
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).name


def test_a_fine_tuned_teacher_defaults_to_the_recipes_name_and_seed() -> None:
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


def test_references_default_to_prompts() -> None:
    prompts = {"source": "p.jsonl", "template": "p.j2", "reference": "answer", "holdout": 0.2}
    recipe = recipe_from({**MINIMAL, "prompts": prompts, "references": {"limit": 5}}, "r.yaml")
    assert recipe.gold_prompts == recipe.prompts.model_copy(update={"limit": 5})
    assert recipe_from({**MINIMAL, "prompts": prompts}, "r.yaml").gold_prompts.limit is None
    assert recipe_from(yaml.safe_load(recipe.as_yaml()), "again") == recipe


def test_references_must_have_the_same_holdout() -> None:
    with pytest.raises(
        RecipeError, match=r"references\.holdout is 0\.0: prompts\.holdout is 0\.1, .*Remove references"
    ):
        recipe_from({**MINIMAL, "references": {"holdout": 0.0}}, "r.yaml")
