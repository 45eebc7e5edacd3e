"""A teacher that is fine-tuned first, and students of the references: what is made, skipped, refused and resumed."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, StillhouseError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.models.find import teacher_files
from stillhouse.models.load import load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_distill, check_labels, check_run
from stillhouse.stages.finetune import check_finetuned, check_finetuning, finetuning_of, make_gold, open_gold
from stillhouse.stages.stages import (
    RunResult,
    distill_stage,
    finetune_stage,
    plan_stage,
    recipe_dataset,
    run_stages,
    students_to_train,
)
from stillhouse.student.finished.folder import StudentCard, read_card, student_folder
from stillhouse.teachers.base import open_teacher
from tests.conftest import WORDS, MakeRecipe
from tests.encoder_decoders import tiny_t5
from tests.stages.conftest import TRAIN, Tuned
from tests.student.training.test_train import power_cut_at, same, weights

CONFIG = {"hidden_size": 48, "num_hidden_layers": 3}


def rows_of(dataset: Dataset) -> dict[str, str]:
    """Prompt -> completion."""
    batches = [batch for split in ("train", "validation") for batch in dataset.batches(split)]  # type: ignore[arg-type]
    rows = [completion_at(batch, index) for batch in batches for index in range(batch.num_rows)]
    return {row.prompt.text: row.text for row in rows}


def test_references_of_their_own_are_all_that_is_learnt_from(tuned: Tuned) -> None:
    recipe = tuned()
    few = recipe.model_copy(update={"references": recipe.prompts.model_copy(update={"limit": 7})})
    gold = make_gold(few)
    everything = rows_of(
        make_gold(recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"name": "all"})}))
    )
    assert rows_of(gold).items() <= everything.items()
    assert sum(gold.manifest.rows.values()) == 7 < len(everything)
    check_run(few)


def finetuned(recipe: Recipe) -> StudentCard:
    result = finetune_stage(recipe)
    assert result is not None
    return result.card


# ------------------------------------------------------------------------------------------------------------ references


def test_a_gold_dataset_has_the_references_as_completions(tuned: Tuned, word_prompts: Path) -> None:
    recipe = tuned()
    gold = make_gold(recipe)
    assert gold.manifest.name == "words-gold"
    assert gold.manifest.teacher.kind == "reference"
    assert rows_of(gold) == {f"Explain {word}.": f"A {word} is a thing." for word in WORDS}
    assert gold.manifest.totals.cost_usd in (None, 0)
    assert make_gold(recipe).manifest.version == 1


def test_a_mended_reference_is_a_new_row_and_another_key(tuned: Tuned, word_prompts: Path) -> None:
    recipe = tuned()
    tuning = finetuning_of(recipe)
    assert tuning is not None
    before = tuning.folder(make_gold(recipe)).key
    word_prompts.write_text(word_prompts.read_text().replace("A tram is a thing.", "A tram runs on rails."))
    gold = make_gold(recipe)
    assert gold.manifest.version == 2
    assert rows_of(gold)["Explain tram."] == "A tram runs on rails."
    assert tuning.folder(gold).key != before


def test_references_that_are_written_anew_are_the_same_to_a_student(tuned: Tuned, tmp_path: Path) -> None:
    recipe = tuned()
    tuning = finetuning_of(recipe)
    assert tuning is not None
    first = make_gold(recipe)
    key = tuning.folder(first).key
    shutil.rmtree(tmp_path / "labels/words-gold")
    other = recipe.model_copy(
        update={"label": recipe.label.model_copy(update={"shard_size": 2, "samples": 3}), "name": "other"}
    )
    assert tuning.folder(make_gold(other)).key == key


@pytest.mark.parametrize(
    ("label_parts", "words"),
    [
        ({"soft": None}, "label.mode is 'generate'.*Set it to 'score'"),
        ({"mode": "score", "soft": {"k": 4}}, "references have no distribution"),
    ],
)
def test_the_reference_teacher_refuses_what_no_reference_has(
    scripted_recipe: MakeRecipe, label_parts: dict[str, Any], words: str
) -> None:
    recipe = scripted_recipe(teacher={"kind": "reference"}, label=label_parts)
    with pytest.raises(RecipeError, match=words):
        open_teacher(recipe.teacher, recipe.label, 0)
    recipe = scripted_recipe(teacher={"kind": "reference", "options": {"x": 1}}, label={"mode": "score"})
    with pytest.raises(RecipeError, match=r"teacher\.options\.x"):
        open_teacher(recipe.teacher, recipe.label, 0)


def test_a_reference_teacher_of_a_recipes_own(scripted_recipe: MakeRecipe) -> None:
    recipe = scripted_recipe(teacher={"kind": "reference"}, label={"mode": "score", "shard_size": 4})
    result = asyncio.run(label(recipe))
    assert result.sent == 12
    assert rows_of(result.dataset)["Explain sofa."] == "A sofa is a thing."


# ------------------------------------------------------------------------------------------------------------ the teacher


def test_the_teacher_learns_the_references_and_labels(tuned: Tuned, tiny_model: Path) -> None:
    recipe = tuned(train={**TRAIN, "num_train_epochs": 15})
    card = finetuned(recipe)
    losses = [step.loss for step in card.log if step.loss is not None]
    assert losses[-1] < 0.7 * losses[0]
    assert (card.variant, card.is_teacher, card.dataset) == ("gold", True, "words-gold/v001")
    files = teacher_files(recipe)
    assert files.folder == Path(recipe.teacher.labelling_model)
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    assert teacher.identity.content_sha256 == files.content_sha256
    assert teacher.identity.content_sha256 != open_teacher(tuned_start(recipe), recipe.label, 0).identity.content_sha256
    told = (files.folder / "README.md").read_text()
    assert "fine-tuned teacher" in told
    assert "Compared with the teacher" not in told


def tuned_start(recipe: Recipe) -> Any:
    return recipe.teacher.model_copy(update={"finetune": None})


@pytest.mark.parametrize("config", [None, CONFIG], ids=["from a model", "from a config"])
def test_fine_tuned_once_it_is_not_again_and_torch_stays_out(tuned: Tuned, tmp_path: Path, config: Any) -> None:
    recipe = tuned(config=config)
    card = finetuned(recipe)
    (tmp_path / "again.yaml").write_text(recipe.as_yaml())
    probe = (
        "import sys; from stillhouse.recipe.load import load_recipe; from stillhouse.stages.stages import finetune_stage;"
        f"r = finetune_stage(load_recipe({str(tmp_path / 'again.yaml')!r}));"
        "print(r.trained, r.card.key, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", card.key, "False"]


@pytest.mark.slow
def test_a_teacher_of_a_config_begins_afresh_and_needs_no_weights(
    tuned: Tuned, tiny_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = tuned(model=bare, config=CONFIG, student={"init": {"config": {"num_hidden_layers": 1}}})
    check_run(recipe)  # of the student too, whose config is a change of a teacher that is not there yet
    finetuned(recipe)
    model = load_language_model(Path(recipe.teacher.labelling_model)).model
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (48, 3)
    check_labels(recipe)
    asyncio.run(label(recipe))
    check_distill(recipe)
    _, _, student = [distill_stage(recipe, one, dataset_for(recipe, one)) for one in students_to_train(recipe)]
    made = load_language_model(Path(student.folder)).model.config
    assert (made.hidden_size, made.num_hidden_layers) == (48, 1)


def dataset_for(recipe: Recipe, student: Any) -> Dataset:
    return open_gold(recipe) if student.mode == "gold" else recipe_dataset(recipe)


def test_a_fine_tuning_that_was_killed_goes_on_and_ends_as_an_unbroken_one(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {**TRAIN, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}
    recipe = tuned(train=train)
    whole = finetuned(tuned(train=train, root=str(tmp_path / "unbroken")))
    with power_cut_at(4, monkeypatch):
        finetune_stage(recipe)
    assert read_card(Path(recipe.teacher.labelling_model)) is None
    with pytest.raises(TeacherUnavailable, match="not been fine-tuned yet: .* Run `stillhouse finetune`"):
        check_labels(recipe)
    steps: list[int] = []
    result = finetune_stage(recipe, lambda what, done, total: steps.append(done) if "Fine-tuning" in what else None)
    assert result is not None
    assert result.trained
    assert min(steps) > 3
    assert result.card.steps == whole.steps
    assert same(weights(tmp_path / "teachers/test/gold"), weights(tmp_path / "unbroken/test/gold"))


def test_another_recipe_takes_the_same_teacher_by_its_name(tuned: Tuned) -> None:
    recipe = tuned(name="shared", seed=7)
    finetuned(recipe)
    other = recipe.model_copy(update={"name": "other", "seed": 1})
    again = finetune_stage(other)
    assert again is not None
    assert not again.trained


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_a_teacher_that_is_not_fine_tuned_yet_or_was_so_otherwise_labels_nothing(
    tuned: Tuned, word_prompts: Path
) -> None:
    recipe = tuned()
    for check in (check_labels, check_distill):
        with pytest.raises(TeacherUnavailable, match="gold does not exist. Run `stillhouse finetune`"):
            check(recipe)
    with pytest.raises(TeacherUnavailable, match="Run `stillhouse finetune`"):
        asyncio.run(label(recipe))  # without any check
    finetuned(recipe)
    check_labels(recipe)
    for other in (tuned(train={**TRAIN, "learning_rate": 0.02}), tuned(config=CONFIG), tuned(seed=5)):
        with pytest.raises(TeacherUnavailable, match="with other settings or other references"):
            check_labels(other)
    word_prompts.write_text(word_prompts.read_text().replace("A tram is", "Any tram is"))
    check_finetuned(recipe)  # against the references that were written
    with pytest.raises(TeacherUnavailable, match="with other settings or other references"):
        check_labels(recipe)


def test_a_plan_before_fine_tuning_counts_nothing_as_answered(tuned: Tuned, tmp_path: Path) -> None:
    recipe = tuned()
    start = recipe.model_copy(update={"teacher": tuned_start(recipe)})
    asyncio.run(label(start))
    estimate, ready = plan_stage(recipe)
    assert (estimate.to_send, estimate.answered, ready) == (12, 0, False)
    assert not (tmp_path / "teachers").exists()
    finetuned(recipe)
    estimate, ready = plan_stage(recipe)
    assert (estimate.to_send, ready) == (12, True)


@pytest.mark.parametrize(
    ("finetune", "setting"),
    [
        ({"train": {"learning_rat": 1}}, "train.learning_rat"),
        ({"train": {"output_dir": "x"}}, "train.output_dir"),
        ({"train": {"greater_is_better": True}}, "train.greater_is_better"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate"),
        ({"train": {"gradient_accumulation_steps": 0}}, "train.gradient_accumulation_steps"),
        ({"train": {"save_strategy": "best"}}, "train.save_strategy"),
        ({"train": {"num_train_epochs": 0}}, "train.num_train_epochs"),
        ({"train": {"optim": "adamw_8"}}, "train"),
        ({"train": {"report_to": "tensorbord"}}, "train.report_to"),
        ({"train": {"fsdp": True}}, "train.fsdp"),
        ({"train": {"liger_kernel_config": {"cross_entropy": True}}}, "train.liger_kernel_config.cross_entropy"),
        ({"config": {"hiden_size": 8}}, "config.hiden_size"),
        ({"config": {"hidden_size": -8}}, "config.hidden_size"),
        ({"config": {"vocab_size": 8}}, "config.vocab_size"),
        ({"config": {"hidden_size": 30}}, "config"),
        ({"config": {"model_type": "lama"}}, "config.model_type"),
        ({"lora": {"target_modules": ["no_proj"]}}, "lora.target_modules"),
        ({"early_stopping": {}, "train": {"eval_strategy": "no"}}, "early_stopping"),
        ({"early_stopping": {}, "train": {"eval_strategy": "steps"}}, "train.eval_strategy"),
    ],
    ids=str,
)
def test_fine_tuning_errors_name_the_teacher_s_settings(
    tuned: Tuned, tmp_path: Path, finetune: dict[str, Any], setting: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_run(tuned(**finetune))
    assert caught.value.setting == f"teacher.finetune.{setting}"
    assert not re.search(r"student\.\w", str(caught.value))
    assert not (tmp_path / "teachers").exists()
    assert not (tmp_path / "labels").exists()


def test_what_goes_wrong_in_training_names_the_fine_tuning_too(tuned: Tuned) -> None:
    with pytest.raises(StillhouseError, match=r"longer than teacher\.finetune\.max_length \(2\)"):
        finetune_stage(tuned(max_length=2))


def test_a_start_that_cannot_be_fine_tuned_is_the_setting_teacher_model(tuned: Tuned, tmp_path: Path) -> None:
    with pytest.raises(TeacherUnavailable) as missing:
        check_finetuning(tuned(model=tmp_path / "nowhere"))
    assert (missing.value.setting, missing.value.value) == ("teacher.model", str(tmp_path / "nowhere"))
    model = tiny_t5(tmp_path / "t5")
    with pytest.raises(RecipeError) as packed:
        check_finetuning(tuned(model=model, packing=True))
    assert (packed.value.setting, packed.value.value) == ("teacher.finetune.packing", True)
    config = json.loads((model / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForSeq2SeqLM": "own.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    with pytest.raises(RecipeError, match=r"set teacher\.options\.trust_remote_code to true") as untrusted:
        check_finetuning(tuned(model=model))
    assert (untrusted.value.setting, untrusted.value.value) == ("teacher.model", str(model))


# ------------------------------------------------------------------------------------------------------------ gold students


def test_a_gold_student_learns_from_the_references_and_keeps_its_key(tuned: Tuned, tmp_path: Path) -> None:
    recipe = tuned(
        student={"mode": "gold", "loss": {"kind": "reverse-kl"}, "labels": "live"}, evaluate={"baselines": []}
    )
    (student,) = students_to_train(recipe)
    gold = make_gold(recipe)
    key = student_folder(recipe.model_copy(update={"teacher": tuned_start(recipe)}), student, "gold", gold).key
    plain = recipe.model_copy(update={"teacher": tuned_start(recipe)})
    result = distill_stage(plain, student, gold)
    assert (result.card.variant, result.card.key, result.card.dataset) == ("gold", key, "words-gold/v001")
    assert not result.card.is_teacher
    other = student.model_copy(update={"labels": "stored"})
    assert student_folder(plain, other, "gold", gold).finished_card() is not None  # neither shapes it


def test_the_baselines_are_trained_before_the_student_gold_first(tuned: Tuned) -> None:
    assert [student.mode for student in students_to_train(tuned())] == ["gold", "black-box", "white-box"]
    assert [student.mode for student in students_to_train(tuned(student={"mode": "gold"}))] == ["black-box", "gold"]
    assert tuned().model_copy(update={"teacher": tuned_start(tuned())}).needs_gold
    plain = tuned(evaluate={"baselines": []})
    assert plain.needs_gold
    assert not plain.model_copy(update={"teacher": tuned_start(plain)}).needs_gold


# ------------------------------------------------------------------------------------------------------------ the whole way


def roles(result: RunResult) -> list[str]:
    return [model.role for model in result.evaluation.report.models]


@pytest.mark.slow
def test_the_whole_way_with_a_fine_tuned_teacher_and_again_nothing(tuned: Tuned, tiny_model: Path) -> None:
    recipe = tuned(train={**TRAIN, "num_train_epochs": 8})
    check_run(recipe)
    first = run_stages(recipe)
    assert first.finetuned is not None
    assert first.finetuned.trained
    assert roles(first) == [
        "teacher",
        "teacher before fine-tuning",
        "untrained student",
        "gold student",
        "black-box student",
        "white-box student",
    ]
    teacher, before, *_ = first.evaluation.report.models
    assert (teacher.model, before.model) == (recipe.teacher.labelling_model, str(tiny_model))
    assert teacher.kl_per_token is not None
    assert before.kl_per_token is not None
    assert teacher.kl_per_token.mean == 0 < before.kl_per_token.mean
    identity = recipe_dataset(recipe).manifest.teacher
    assert identity.content_sha256 == teacher_files(recipe).content_sha256
    gold = Path(first.students[0].folder)
    assert "words-gold/v001" in (gold / "README.md").read_text()
    again = run_stages(recipe)
    assert again.finetuned is not None
    assert not again.finetuned.trained
    assert again.labelled.sent == 0
    assert not any(student.trained for student in again.students)
    assert not again.evaluation.fresh


@pytest.mark.slow
def test_the_whole_way_with_a_t5(tuned: Tuned, tmp_path: Path) -> None:
    start = tiny_t5(tmp_path / "t5", layers=2, decoder_layers=2)
    recipe = tuned(
        model=start,
        config={"num_layers": 3},
        student={"init": {"from": "teacher", "layers": {"encoder": 2, "decoder": 1}}},
        evaluate={"metrics": ["exact-match"]},
    )
    check_run(recipe)
    result = run_stages(recipe)
    assert roles(result) == ["teacher", "untrained student", "gold student", "black-box student", "white-box student"]
    made = json.loads((Path(result.students[-1].folder) / "config.json").read_text())
    assert (made["num_layers"], made["num_decoder_layers"]) == (2, 1)
    assert json.loads((Path(recipe.teacher.labelling_model) / "config.json").read_text())["num_layers"] == 3
