"""The practice of training: early stopping, precision, memory, where figures go, and kernels."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.models.llama import modeling_llama

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, TrainingError
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import EarlyStoppingSettings, LoraSettings, StudentSettings
from stillhouse.student.data.several import DrawnRows
from stillhouse.student.finished.folder import StudentCard
from stillhouse.student.training import liger
from stillhouse.student.training import train as training
from stillhouse.student.training.arguments import training_arguments
from stillhouse.student.training.frozen import freeze
from stillhouse.student.training.train import distill
from stillhouse.student.training.trainer import StudentTrainer
from tests.student.training.test_forward import family
from tests.student.training.test_train import StopAt, same, weights

Labelled = tuple[Recipe, StudentSettings, Dataset]
# Rates that rise until the student gets worse again, whatever the number of epochs.
RISING = {
    "learning_rate": 0.4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 100,
    "num_train_epochs": 12,
}


def at(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.model_copy(update={"students": str(folder)})


def changed(settings: StudentSettings, *, train: dict[str, Any], **parts: Any) -> StudentSettings:
    return settings.model_copy(update={**parts, "train": {**settings.train, **train}})


def power_cut(monkeypatch: pytest.MonkeyPatch, at_step: int | None) -> None:
    """A training that breaks off after a step, or with its last step done and nothing of the student written."""

    class Breaking(StudentTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            if at_step is not None:
                self.add_callback(StopAt(at_step))

        def gather_weights(self) -> dict[str, torch.Tensor]:
            raise RuntimeError("power cut")

    monkeypatch.setattr(training, "StudentTrainer", Breaking)


def held_out(card: StudentCard) -> list[float]:
    return [step.eval_kl for step in card.log if step.eval_kl is not None]


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, alpha=1)])
@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_student_is_kept(labelled: Labelled, tmp_path: Path, lora: LoraSettings | None, limit: int) -> None:
    recipe, settings, dataset = labelled
    stopping = EarlyStoppingSettings(patience=2)
    early = changed(settings, train={**RISING, "save_total_limit": limit}, early_stopping=stopping, lora=lora)
    card = distill(at(recipe, tmp_path / "early"), early, dataset)
    divergences = held_out(card)
    best = divergences.index(min(divergences))
    print(divergences)
    assert 0 < best == len(divergences) - 3 < 9  # two evaluations without a better one, and training ended
    only = changed(settings, train={**RISING, "num_train_epochs": best + 1}, lora=lora)
    expected = distill(at(recipe, tmp_path / "only"), only, dataset)
    assert held_out(expected) == divergences[: best + 1]
    assert same(weights(tmp_path / "early/test/white-box"), weights(tmp_path / "only/test/white-box"))


def test_a_difference_below_min_delta_is_none(labelled: Labelled) -> None:
    recipe, settings, dataset = labelled
    stopping = EarlyStoppingSettings(patience=2, min_delta=50.0)
    card = distill(recipe, changed(settings, train={"num_train_epochs": 9}, early_stopping=stopping), dataset)
    assert len(held_out(card)) == 3


def test_a_black_box_student_is_judged_by_its_loss(labelled: Labelled) -> None:
    recipe, settings, dataset = labelled
    stopping = EarlyStoppingSettings(patience=1, min_delta=50.0)
    early = changed(settings, train={"num_train_epochs": 9}, early_stopping=stopping, mode="black-box")
    assert sum(step.eval_loss is not None for step in distill(recipe, early, dataset).log) == 2


@pytest.mark.parametrize(
    ("stop_at", "cut"), [(2, "epoch"), (7, "epoch"), (None, "epoch"), (3, "steps"), (None, "steps")]
)
def test_a_stopped_training_stops_where_an_unbroken_one_does(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None, cut: str
) -> None:
    """`None`: the power goes after the evaluation that ended the training."""
    recipe, settings, dataset = labelled
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1} if cut == "steps" else {}
    early = changed(settings, train={**RISING, **steps}, early_stopping=EarlyStoppingSettings(patience=2))
    whole = distill(at(recipe, tmp_path / "unbroken"), early, dataset)
    assert whole.log[-1].step < 30  # of 36
    with monkeypatch.context() as patch:
        power_cut(patch, stop_at)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(recipe, early, dataset)
    resumed = distill(recipe, early, dataset)
    assert resumed.steps == whole.steps
    assert held_out(resumed) == held_out(whole)
    assert same(weights(tmp_path / "students/test/white-box"), weights(tmp_path / "unbroken/test/white-box"))


def test_no_step_too_many_after_the_last_checkpoint(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`max_steps` in the middle of an epoch, and the power goes with the training done."""
    recipe, settings, dataset = labelled
    short = changed(settings, train={"max_steps": 4, "save_strategy": "steps", "save_steps": 2})
    distill(at(recipe, tmp_path / "unbroken"), short, dataset)
    with monkeypatch.context() as patch:
        power_cut(patch, None)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(recipe, short, dataset)
    assert distill(recipe, short, dataset).steps == 4
    assert same(weights(tmp_path / "students/test/white-box"), weights(tmp_path / "unbroken/test/white-box"))


@pytest.mark.parametrize(
    ("parts", "train", "setting"),
    [
        ({"early_stopping": EarlyStoppingSettings()}, {}, "student.early_stopping"),
        ({}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, "student.train.lr_scheduler_type"),
    ],
)
def test_a_dataset_without_held_out_rows(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], train: dict[str, Any], setting: str
) -> None:
    recipe, settings, dataset = labelled
    read = training.open_rows

    def read_none(dataset: Dataset, split: Any, *arguments: Any, **named: Any) -> Any:
        found = read(dataset, split, *arguments, **named)
        return DrawnRows(found, 0, seed=[0]) if split == "validation" else found

    monkeypatch.setattr(training, "open_rows", read_none)
    with pytest.raises(RecipeError, match="it depends on held-out rows, and the dataset has none") as caught:
        distill(recipe, changed(settings, train=train, **parts), dataset)
    assert caught.value.setting == setting
    assert held_out(distill(recipe, settings, dataset)) == []


@pytest.mark.parametrize("stopping", [None, EarlyStoppingSettings()])
def test_a_training_that_diverges_says_so(labelled: Labelled, stopping: EarlyStoppingSettings | None) -> None:
    recipe, settings, dataset = labelled
    wild = changed(settings, train={"learning_rate": 1e30, "optim": "sgd"}, early_stopping=stopping)
    with pytest.raises(TrainingError, match="the training has diverged: .* is not a number after step") as caught:
        distill(recipe, wild, dataset)
    assert (caught.value.setting, caught.value.value) == ("student.train.learning_rate", 1e30)


# -------------------------------------------------------------------------------------------------- precision and memory


def log_of(recipe: Recipe, settings: StudentSettings, dataset: Dataset, folder: Path) -> list[dict[str, float]]:
    return [step.model_dump(exclude_none=True) for step in distill(at(recipe, folder), settings, dataset).log]


@pytest.mark.parametrize("packing", [False, True])
def test_activations_computed_again_change_nothing(labelled: Labelled, tmp_path: Path, packing: bool) -> None:
    recipe, settings, dataset = labelled
    logs = [
        log_of(recipe, changed(settings, train=train, packing=packing), dataset, tmp_path / str(number))
        for number, train in enumerate(
            [
                {},
                {"gradient_checkpointing": True},
                {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            ]
        )
    ]
    assert logs[0] == logs[1] == logs[2]


def test_bf16_learns_and_the_student_keeps_its_own_type(labelled: Labelled, tmp_path: Path) -> None:
    recipe, settings, dataset = labelled
    short = {"num_train_epochs": 8}
    exact = log_of(recipe, changed(settings, train=short), dataset, tmp_path / "exact")
    mixed = log_of(recipe, changed(settings, train={**short, "bf16": True}), dataset, tmp_path / "mixed")
    assert mixed[0]["loss"] != exact[0]["loss"]
    assert mixed[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert [step["loss"] for step in mixed if "loss" in step][-1] < 0.8 * mixed[0]["loss"]
    assert {tensor.dtype for tensor in weights(tmp_path / "mixed/test/white-box").values()} == {torch.float32}


def test_noise_on_the_embeddings_is_gone_when_the_training_is(labelled: Labelled, tmp_path: Path) -> None:
    recipe, settings, dataset = labelled
    noisy = log_of(recipe, changed(settings, train={"neftune_noise_alpha": 5}), dataset, tmp_path / "noisy")
    assert noisy[0]["loss"] != log_of(recipe, settings, dataset, tmp_path / "plain")[0]["loss"]


@pytest.mark.parametrize(
    "train", [{"include_num_input_tokens_seen": "non_padding"}, {"torch_empty_cache_steps": 1}, {"eval_on_start": True}]
)
@pytest.mark.parametrize("packing", [False, True])
def test_other_arguments_work(labelled: Labelled, train: dict[str, Any], packing: bool) -> None:
    recipe, settings, dataset = labelled
    assert distill(recipe, changed(settings, train=train, packing=packing), dataset).steps > 0


# ------------------------------------------------------------------------------------------------------ where figures go


class Writer:
    """In TensorBoard's place."""

    seen: dict[str, list[tuple[str, int]]]

    def __init__(self, log_dir: str) -> None:
        self._seen = self.seen.setdefault(log_dir, [])

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._seen.append((name, step))

    def add_text(self, *_: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def pretend_installed(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look installed; other ones, which libraries look for too, are looked for as ever."""
    find_spec = importlib.util.find_spec

    def find(name: str, *parent: str | None) -> Any:
        return object() if name == package else find_spec(name, *parent)

    monkeypatch.setattr(importlib.util, "find_spec", find)


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, int]]]:
    """What is written, by folder."""
    seen: dict[str, list[tuple[str, int]]] = {}
    monkeypatch.setattr(Writer, "seen", seen, raising=False)
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    pretend_installed(monkeypatch, "tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return seen


def test_tensorboard_s_files_outlive_the_work_folder(
    labelled: Labelled, tensorboard: dict[str, list[tuple[str, int]]]
) -> None:
    recipe, settings, dataset = labelled
    monitored = changed(settings, train={"report_to": "tensorboard"})
    card = distill(recipe, monitored, dataset)
    [(folder, written)] = tensorboard.items()
    assert Path(folder) == Path(recipe.students) / "test/logs" / f"white-box-{card.key[:12]}"
    assert {name for name, _ in written} >= {"train/loss", "eval/loss", "eval/kl", "eval/cross_entropy"}
    assert max(step for _, step in written) == card.steps


def test_the_environment_still_says_where(
    labelled: Labelled, tensorboard: dict[str, list[tuple[str, int]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, settings, dataset = labelled
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    distill(recipe, changed(settings, train={"report_to": ["tensorboard"]}), dataset)
    assert list(tensorboard) == [str(tmp_path / "mine")]


# --------------------------------------------------------------------------------------------------------------- kernels


@pytest.fixture
def gpu_with_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CUDA and the package, whose kernels are for llama alone."""
    module = types.ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(liger.torch.cuda, "is_available", lambda: True)
    pretend_installed(monkeypatch, "liger_kernel")


def with_train(train: dict[str, Any]) -> StudentSettings:
    return StudentSettings.model_validate({"init": {"model": "x"}, "train": train})


@pytest.mark.usefixtures("gpu_with_liger")
@pytest.mark.parametrize(
    ("given", "model_type", "used"),
    [
        ({}, "llama", True),
        ({"use_liger_kernel": True}, "llama", True),
        ({"use_liger_kernel": False}, "llama", False),
        ({}, "gpt2", False),
    ],
)
def test_liger_is_used_where_there_is_any(given: dict[str, Any], model_type: str, used: bool) -> None:
    settings = liger.liger_arguments(with_train(given), {**given, "liger_kernel_config": {"rope": False}})
    assert settings["liger_kernel_config"] == {
        "rope": False,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    arguments = types.SimpleNamespace(**settings)
    liger.disable_unsupported_liger(arguments, with_train(given), model_type)
    assert arguments.use_liger_kernel == used


@pytest.mark.usefixtures("gpu_with_liger")
def test_kernels_that_are_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"use_liger_kernel": True}
    arguments: Any = types.SimpleNamespace(**liger.liger_arguments(with_train(wanted), wanted))
    with pytest.raises(RecipeError, match="Liger has no kernels for a gpt2 model"):
        liger.disable_unsupported_liger(arguments, with_train(wanted), "gpt2")
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda *_: None)
    assert not liger.liger_arguments(with_train({}), {})["use_liger_kernel"]
    with pytest.raises(RecipeError, match="pip install liger-kernel"):
        liger.liger_arguments(with_train(wanted), wanted)


def test_what_is_exchanged_for_a_training_is_taken_back() -> None:
    before = modeling_llama.LlamaRMSNorm
    with liger.restore_patched_module(family("llama")):
        modeling_llama.LlamaRMSNorm = torch.nn.Identity
    assert modeling_llama.LlamaRMSNorm is before


def test_one_process_has_one_device(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would split a batch over all of a machine's GPUs, labels and all; torchrun starts a process for each."""
    recipe, settings, _ = labelled
    setup = TrainingArguments.__post_init__

    def two_gpus(self: TrainingArguments) -> None:
        setup(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", two_gpus)
    assert training_arguments(recipe, settings, Path("somewhere")).n_gpu == 1


@pytest.mark.parametrize("parts", [("embedding", "head"), ("head",)])
def test_frozen_parts_stay_what_they_were_and_the_rest_learns(labelled: Labelled, parts: tuple[str, ...]) -> None:
    recipe, settings, dataset = labelled
    card = distill(recipe, settings.model_copy(update={"freeze": parts}), dataset)
    before, after = (weights(Path(recipe.students) / recipe.name / of) for of in ("untrained", "white-box"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    shared = {"model.embed_tokens.weight", "lm_head.weight"}  # one weight, in the tiny model
    assert moved == before.keys() - shared
    assert card.trainable_parameters == card.parameters - before["lm_head.weight"].numel()


def test_a_head_of_its_own_is_frozen_alone() -> None:
    model = family("gpt_neox")
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert head.weight is not model.get_input_embeddings().weight  # type: ignore[operator]
    freeze(model, ("head",))  # type: ignore[arg-type]
    assert [one for one in model.parameters() if not one.requires_grad] == [head.weight]


def test_adapters_leave_nothing_to_freeze(labelled: Labelled) -> None:
    _, settings, _ = labelled
    with pytest.raises(ValidationError, match=r"freeze is \['head'\]: lora is set.*Remove freeze"):
        StudentSettings.model_validate(settings.model_dump(by_alias=True) | {"freeze": ["head"], "lora": {}})
