"""LoRA: adapters alone learn, checkpoints hold nothing else, and the finished student is an ordinary model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LoraSettings, StudentSettings
from stillhouse.stages.checks import check_student
from stillhouse.student.training import train as training
from stillhouse.student.training.forward import replace_forward_with_loss
from stillhouse.student.training.lora import add_adapters, count_trainable, merge_adapters
from stillhouse.student.training.objective import load_objective
from stillhouse.student.training.train import distill
from stillhouse.student.training.trainer import StudentTrainer
from tests.conftest import MakeRecipe
from tests.precision import close_to_dense, in_float64, largest
from tests.student.training.test_forward import a_batch, family, student
from tests.student.training.test_train import power_cut_at, same, weights

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Labelled = tuple[Recipe, StudentSettings, Dataset]
LORA = LoraSettings(r=4, alpha=8, dropout=0.1)


def with_lora(settings: StudentSettings, lora: LoraSettings = LORA, **train: Any) -> StudentSettings:
    return settings.model_copy(update={"lora": lora, "train": {**settings.train, **train}})


def test_before_the_first_step_the_loss_is_the_whole_student_s(tiny_model: Path) -> None:
    objective = load_objective(student().model_copy(update={"mode": "black-box"}))
    losses = []
    for lora in (False, True):
        lm = load_language_model(tiny_model, device="cpu")
        model: Any = add_adapters(lm.model, LORA, seed=0) if lora else lm.model
        replace_forward_with_loss(lm.model, objective, chunk=4)
        model.eval()  # no dropout
        losses.append(model(**a_batch(vocabulary=100))[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.numeric
@in_float64()
def test_the_merged_student_says_what_the_adapted_one_did(name: str, tmp_path: Path) -> None:
    model: Any = family(name)
    adapted = add_adapters(model, LORA, seed=0)
    for key, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in key)
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.arange(8).unsqueeze(0)
    expected = adapted.eval()(tokens).logits
    assert not torch.allclose(expected, family(name)(tokens).logits, atol=1e-2)
    start: Any = LanguageModel(family(name), None)  # type: ignore[arg-type]
    whole = merge_adapters(start, LORA, adapted.state_dict(), tmp_path / "adapter").model
    assert type(whole) is type(family(name))
    assert whole.state_dict().keys() == family(name).state_dict().keys()
    close_to_dense(whole.eval()(tokens).logits, expected, summed=largest(expected))
    again = PeftModel.from_pretrained(family(name), str(tmp_path / "adapter")).eval()  # type: ignore[arg-type]
    close_to_dense(again(tokens).logits, expected, summed=largest(expected))


class Files(TrainerCallback):
    """Notes what a checkpoint is made of."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seen.append({file.name for file in Path(args.output_dir).glob("checkpoint-*/*")})


@pytest.mark.parametrize("checkpointing", [{}, {"gradient_checkpointing": True}])
def test_a_student_learns_by_adapters_alone(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch, checkpointing: dict[str, Any]
) -> None:
    recipe, settings, dataset = labelled
    files = Files()

    class Noted(StudentTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(files)

    monkeypatch.setattr(training, "StudentTrainer", Noted)
    card = distill(recipe, with_lora(settings, num_train_epochs=12, **checkpointing), dataset)
    losses = [step.loss for step in card.log if step.loss is not None]
    assert losses[-1] < 0.8 * losses[0]
    assert files.seen
    for names in files.seen:
        assert "adapter_model.safetensors" in names
        assert "model.safetensors" not in names
    folder = Path(recipe.students) / recipe.name
    start, end = weights(folder / "untrained"), weights(folder / "white-box")
    changed = {key for key in start if not torch.equal(start[key], end[key])}
    assert changed == {key for key in start if "_proj" in key}  # every linear layer, and nothing else
    adapter = load_file(folder / "white-box/adapter/adapter_model.safetensors")
    assert card.trainable_parameters == sum(tensor.numel() for tensor in adapter.values()) < card.parameters / 2
    assert card.parameters == sum(
        tensor.numel() for tensor in load_file(folder / "white-box/model.safetensors").values()
    )
    key = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{key}.lora_{half}.weight"] for half in "AB")
    before, more = start[f"{key}.weight"].double(), 8 / 4 * b.double() @ a.double()
    summed = largest(before) + largest(8 / 4 * b.abs() @ a.abs())
    close_to_dense(end[f"{key}.weight"].double(), before + more, summed=summed, roundings=8, stored=torch.float32)
    assert sorted(file.name for file in (folder / "white-box/adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((folder / "white-box/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_activations_computed_again_change_nothing(labelled: Labelled, tmp_path: Path) -> None:
    recipe, settings, dataset = labelled
    found = []
    for again in (False, True):
        for kwargs in [None, {"use_reentrant": True}] if again else [None]:
            place = recipe.model_copy(update={"students": str(tmp_path / f"{again}{kwargs}")})
            train = {"gradient_checkpointing": again, "gradient_checkpointing_kwargs": kwargs}
            found.append([step.loss for step in distill(place, with_lora(settings, **train), dataset).log])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("stop_at", [2, 5])
def test_resuming_gives_the_student_of_an_unbroken_run(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe, settings, dataset = labelled
    settings = with_lora(settings, save_strategy="steps", save_steps=1, num_train_epochs=3)
    whole = distill(recipe.model_copy(update={"students": str(tmp_path / "unbroken")}), settings, dataset)

    with power_cut_at(stop_at, monkeypatch):
        distill(recipe, settings, dataset)
    assert distill(recipe, settings, dataset).steps == whole.steps
    assert same(weights(tmp_path / "students/test/white-box"), weights(tmp_path / "unbroken/test/white-box"))


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            ("q_proj", "v_porj"),
            "is ['q_proj', 'v_porj']: the student has no module v_porj. Choose from its modules down_proj, gate_proj, ",
        ),
        ("q_proj", "(a string is a pattern for a module's whole name; for its last part use a list, [q_proj])"),
        (r".*\.(query|value)", "the student has no module"),
        ("*proj", "it is not a regular expression"),
        (("input_layernorm",), "is ['input_layernorm']: "),
        (("embed_tokens",), "share their weights"),
        (("lm_head",), "share their weights"),
        ((), "is []: "),
    ],
)
def test_wrong_target_modules(tiny_model: Path, targets: str | tuple[str, ...], words: str) -> None:
    lm = load_language_model(tiny_model, device="cpu")
    with pytest.raises(RecipeError) as caught:
        add_adapters(lm.model, LoraSettings(target_modules=targets), seed=0)
    assert caught.value.setting == "student.lora.target_modules"
    assert words in str(caught.value)
    assert "q_proj" in str(caught.value) or "all-linear" in str(caught.value)


def test_targets_are_looked_at_before_anything_is_labelled(tiny_recipe: MakeRecipe) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)["student"]
    check_student(tiny_recipe(student={**parts, "lora": {}}))
    with pytest.raises(RecipeError, match="the student has no module query"):
        check_student(tiny_recipe(student={**parts, "lora": {"target_modules": ["query"]}}))


def test_targets_can_be_chosen_by_name_and_by_pattern(tiny_model: Path) -> None:
    found = set()
    for targets in [("q_proj", "v_proj"), r".*\.[qv]_proj"]:
        lm = load_language_model(tiny_model, device="cpu")
        found.add(count_trainable(add_adapters(lm.model, LoraSettings(r=2, target_modules=targets), seed=0)))
    assert found == {4 * 2 * ((32 + 32) + (32 + 16))}  # layers, rank, and the widths of the two


def test_the_demo_of_the_adapter_is_loaded_as_any_model(labelled: Labelled) -> None:
    recipe, settings, dataset = labelled
    distill(recipe, with_lora(settings, num_train_epochs=1), dataset)
    folder = Path(recipe.students) / recipe.name
    base = AutoModelForCausalLM.from_pretrained(folder / "untrained", dtype=torch.float64)
    tokens = torch.arange(9).unsqueeze(0)
    adapted = PeftModel.from_pretrained(base, str(folder / "white-box/adapter")).eval()
    whole = AutoModelForCausalLM.from_pretrained(folder / "white-box", dtype=torch.float64).eval()
    with in_float64():  # what is left is the float32 of the merged weights on disk
        expected = adapted(tokens).logits
        close_to_dense(whole(tokens).logits, expected, summed=largest(expected), roundings=100, stored=torch.float32)
