"""Rounds with every kind of student, and what a recipe with rounds is refused for."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.errors import BudgetSpent, DatasetRefused, RecipeError
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import recipe_from
from stillhouse.stages.checks import check_distill
from stillhouse.stages.rounds.recipes import scoring_recipe
from stillhouse.stages.stages import distill_students, finetune_stage, plan_stage
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_t5
from tests.stages.rounds.test_rounds import on_policy, rollouts

INIT = {"from": "teacher", "layers": 2, "choose": "even"}
TRAIN = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "student",
    [
        {"labels": "live"},
        {"lora": {"r": 2}},
        {"init": {**INIT, "vocabulary": "used"}},
        {"packing": True, "max_length": 200},
    ],
    ids=["live", "adapters", "vocabulary", "packed"],
)
def test_other_ways_to_train(student: dict[str, Any], tiny_recipe: MakeRecipe) -> None:
    parts = {"student": {"init": INIT, "train": TRAIN, **student}, "evaluate": {"baselines": []}}
    recipe = tiny_recipe(on_policy={"rounds": 1, "prompts": 4, "sampling": {"max_tokens": 6}}, **parts)
    asyncio.run(label(recipe))
    *_, last = distill_students(recipe)
    assert last.card.variant == "on-policy"
    assert rollouts(recipe, 1).manifest.rows == {"train": 4}


@pytest.mark.slow
def test_the_student_of_the_rounds_has_its_quantised_copy(tiny_recipe: MakeRecipe) -> None:
    student = {"init": INIT, "train": TRAIN, "quantize": "int8"}
    recipe = tiny_recipe(
        student=student,
        on_policy={"rounds": 1, "prompts": 4, "sampling": {"max_tokens": 6}},
        evaluate={"baselines": []},
    )
    asyncio.run(label(recipe))
    *_, last = distill_students(recipe)
    assert (last.trained, last.card.variant) == (True, "on-policy")
    assert last.card.int8 is not None
    shutil.rmtree(Path(last.folder) / "int8")
    file = Path(last.folder) / "student.json"
    file.write_text(last.card.model_copy(update={"int8": None}).model_dump_json())
    *_, again = distill_students(recipe)
    assert (again.trained, again.card.int8) == (False, last.card.int8)  # made anew, and nothing is trained
    assert list((Path(last.folder) / "int8").glob("*.safetensors"))


@pytest.mark.slow
def test_an_encoder_decoder(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    teacher = tiny_t5(tmp_path / "t5")
    recipe = tiny_recipe(
        teacher={"kind": "transformers", "model": str(teacher), "options": {"batch_size": 4}},
        student={"init": {"from": "teacher", "layers": 1, "choose": "even"}, "train": TRAIN},
        on_policy={"rounds": 1, "prompts": 4, "sampling": {"max_tokens": 6}},
        evaluate={"baselines": []},
    )
    asyncio.run(label(recipe))
    *_, last = distill_students(recipe)
    assert last.card.variant == "on-policy"


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    weights = []
    for rows, launch in ((4, None), (2, {"num_processes": 2})):
        recipe = on_policy(
            tiny_recipe,
            start="untrained",
            rounds=1,
            mix=0.0,
            loss={"kind": "minillm"},
            train={"per_device_train_batch_size": rows, "learning_rate": 1e-3},
        )
        raw = recipe.model_dump(mode="json", by_alias=True)
        raw["students"] = str(tmp_path / f"students-{rows}")
        raw["student"]["launch"] = launch
        recipe = recipe_from(raw, "test")
        asyncio.run(label(recipe))
        (student,) = distill_students(recipe)
        weights.append(load_file(Path(student.folder) / "model.safetensors"))
    one, two = weights
    assert all(torch.allclose(weight, two[name], atol=1e-5) for name, weight in one.items())


@pytest.mark.slow
def test_a_fine_tuned_teacher_and_few_references(tiny_recipe: MakeRecipe, word_prompts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in word_prompts.read_text().splitlines()]
    few = [row if place < 6 else {**row, "reference": None} for place, row in enumerate(rows)]
    word_prompts.write_text("".join(json.dumps(row) + "\n" for row in few))
    teacher = tiny_recipe().teacher.model_dump(mode="json", by_alias=True)
    recipe = tiny_recipe(
        references={"limit": 6},
        teacher={**teacher, "finetune": {"root": str(tmp_path / "teachers"), "train": {**TRAIN, "max_steps": 2}}},
        student={"init": INIT, "train": TRAIN},
        on_policy={"rounds": 1, "prompts": 4, "sampling": {"max_tokens": 6}},
        evaluate={"baselines": []},
    )
    finetune_stage(recipe)
    labelled = asyncio.run(label(recipe)).dataset
    *_, last = distill_students(recipe)
    assert last.card.variant == "on-policy"
    scored = rollouts(recipe, 1).manifest
    assert scored.teacher.content_sha256 == labelled.manifest.teacher.content_sha256


def test_another_teacher_than_the_datasets_is_refused(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = on_policy(tiny_recipe)
    asyncio.run(label(recipe))
    distill_students(on_policy(tiny_recipe).model_copy(update={"on_policy": None}))
    other = make_tiny_model(tmp_path / "other", seed=7)
    teacher = recipe.teacher.model_copy(update={"model": str(other)})
    from stillhouse.stages.rounds.stage import _refuse_other_teacher  # the student would be another one, too

    with pytest.raises(DatasetRefused, match="was labelled by a teacher with another model"):
        _refuse_other_teacher(recipe.model_copy(update={"teacher": teacher}), rollouts_parent(recipe))


def rollouts_parent(recipe: Any) -> Any:
    from stillhouse.stages.stages import recipe_dataset

    return recipe_dataset(recipe)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"student": None}, r"student\.mode is null: .* white-box"),
        ({"student": {"init": INIT, "mode": "black-box"}}, r"student\.mode is 'black-box': .* white-box"),
        ({"sweep": {"student.init.layers": [2, 1]}}, "on_policy: the students of a sweep have no rounds"),
        ({"on_policy": {"samples": 2, "sampling": {"temperature": 0}}}, r"on_policy\.samples is 2: .* the same"),
        ({"on_policy": {"mix": 0.5, "lmbda": 0.5}}, r"on_policy\.lmbda is 0\.5: .* 1 - mix"),
        ({"on_policy": {"lmbda": 0}}, r"on_policy\.lmbda is 0: "),
        ({"on_policy": {"round": 2}}, r"on_policy\.round: .* Did you mean 'rounds'"),
    ],
)
def test_contradictions_are_refused(parts: dict[str, Any], words: str, tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=words):
        tiny_recipe(**{"on_policy": {}, **parts})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": {"kind": "revers-kl"}}, "Did you mean 'reverse-kl'"),
        ({"soft": {"encoding": "sampled"}, "loss": {"kind": "reverse-kl"}}, "sampled"),
        ({"train": {"learning_rat": 1}}, "Did you mean 'learning_rate'"),
    ],
)
def test_what_the_rounds_cannot_do_is_refused_before_anything_is_trained(
    settings: dict[str, Any], words: str, tiny_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match=words):
        check_distill(on_policy(tiny_recipe, **settings))


def test_new_prompts_and_a_part_of_the_vocabulary_are_refused(tiny_recipe: MakeRecipe) -> None:
    student = {"init": {**INIT, "vocabulary": "used"}, "train": TRAIN}
    recipe = tiny_recipe(on_policy={"prompts_from": "newest"}, student=student)
    with pytest.raises(RecipeError, match=r"on_policy\.prompts_from is 'newest': .* only the tokens"):
        check_distill(recipe)


def test_an_api_cannot_score(tiny_recipe: MakeRecipe) -> None:
    raw = on_policy(tiny_recipe).model_dump(mode="json", by_alias=True)
    raw["teacher"] = {"kind": "openai", "model": "x", "options": {"base_url": "http://127.0.0.1:1/v1"}}
    raw["student"]["init"] = {"model": raw["student"]["init"].get("model") or "x"}
    with pytest.raises(RecipeError, match="soft labels need token ids, which teacher.kind 'openai' does not return"):
        check_distill(recipe_from(raw, "test"))


def test_lmbda_is_the_share_that_the_student_wrote(tiny_recipe: MakeRecipe) -> None:
    settings = tiny_recipe(on_policy={"lmbda": 0.75}).on_policy
    assert settings is not None
    assert settings.mix == 0.25
    assert settings.rows_from_dataset(300) == 100


def test_the_plan_tells_of_the_rounds(tiny_recipe: MakeRecipe) -> None:
    recipe = on_policy(tiny_recipe, rounds=3)
    estimate, _ = plan_stage(recipe)
    assert estimate.rounds is not None
    assert estimate.rounds.requests == 3 * 4
    assert estimate.rounds.expected_tokens < estimate.rounds.worst_tokens
    assert "on-policy rounds" in str(estimate)
    assert plan_stage(tiny_recipe())[0].rounds is None


def test_the_budget_is_that_of_both_datasets(tiny_recipe: MakeRecipe) -> None:
    recipe = on_policy(tiny_recipe)
    labelled = asyncio.run(label(recipe)).dataset
    recipe = recipe.model_copy(update={"label": recipe.label.model_copy(update={"budget_usd": 2.0})})
    spent = labelled.manifest.totals.model_copy(update={"spent_usd": 0.5})
    object.__setattr__(labelled, "manifest", labelled.manifest.model_copy(update={"totals": spent}))
    assert scoring_recipe(recipe, Path("x.parquet"), "00", labelled).label.budget_usd == 1.5
    spent = spent.model_copy(update={"spent_usd": 2.0})
    object.__setattr__(labelled, "manifest", labelled.manifest.model_copy(update={"totals": spent}))
    with pytest.raises(BudgetSpent, match=r"label\.budget_usd is 2\.0: .* has spent all of it"):
        scoring_recipe(recipe, Path("x.parquet"), "00", labelled)
