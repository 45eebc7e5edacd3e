"""Training arguments: every one of the library's works or is refused in words, before anything is read or written."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from stillhouse.errors import RecipeError
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.student.training import arguments as module
from stillhouse.student.training.arguments import training_arguments

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="says what holds on a CPU")


MIN_LR = "{lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6}}"
KWARGS = ("activation_checkpointing_kwargs", {"determinism_check": "none"})


def recipe(train: dict[str, Any], holdout: float = 0.1, **student: Any) -> Recipe:
    return recipe_from(
        {
            "name": "r",
            "prompts": {"source": "x.jsonl", "holdout": holdout},
            "teacher": {"kind": "scripted"},
            "label": {"soft": {"k": 4}},
            "dataset": {"name": "d"},
            "student": {"init": {"model": "x"}, "train": train, **student},
        },
        "r",
    )


def arguments(train: dict[str, Any], **parts: Any) -> TrainingArguments:
    made = recipe(train, **parts)
    assert made.student is not None
    return training_arguments(made, made.student, Path("somewhere"))


def refusal(train: dict[str, Any], **parts: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        arguments(train, **parts)
    return caught.value


def test_every_argument_that_is_refused_is_one_of_the_library_s() -> None:
    known = {field.name for field in fields(TrainingArguments)}
    assert known >= module._REFUSED.keys() | module._ALIASES.keys() | set(module._ALIASES.values())


@pytest.mark.parametrize("name", sorted(module._REFUSED))
def test_what_would_be_ignored_or_wrong_is_refused_with_the_reason(name: str) -> None:
    default = next(field.default for field in fields(TrainingArguments) if field.name == name)
    other = not default if isinstance(default, bool) else "x.json"
    error = refusal({name: other})
    assert (error.setting, error.value) == (f"student.train.{name}", other)
    refused = module._REFUSED[name]
    reason, fix = refused if isinstance(refused, tuple) else (refused, "remove it")
    assert error.problem == f"a recipe cannot set this argument: {reason}"
    assert error.fix == fix.format(early_stopping="student.early_stopping")


def test_a_refused_argument_at_the_library_s_default_is_harmless() -> None:
    train = {"push_to_hub": False, "label_smoothing_factor": 0.0, "torch_compile": False, "deepspeed": None}
    assert not arguments(train).push_to_hub


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ("{eval_strategy: no}", "eval_strategy", "no"),
        ("{save_strategy: off}", "save_strategy", "no"),
        ("{logging_strategy: no}", "logging_strategy", "no"),
        ("{report_to: no}", "report_to", []),
        ("{report_to: null}", "report_to", []),
        ("{report_to: []}", "report_to", []),
        ("{learning_rate: 1e-4}", "learning_rate", 1e-4),  # YAML reads text
        ("{adam_epsilon: 1e-9}", "adam_epsilon", 1e-9),
        ("{max_steps: 3.0}", "max_steps", 3),
        ("{lr_scheduler_type: cosine}", "lr_scheduler_type", "cosine"),
        (MIN_LR, "lr_scheduler_kwargs", {"min_lr": 1e-6}),
        ("{gradient_checkpointing: true}", "activation_checkpointing", True),
        ("{activation_checkpointing: true}", "gradient_checkpointing", True),
        ("{gradient_checkpointing_kwargs: {determinism_check: none}}", *KWARGS),
        ("{}", "run_name", "r-white-box"),
        ("{run_name: mine}", "run_name", "mine"),
        ("{neftune_noise_alpha: 5}", "neftune_noise_alpha", 5.0),
        ("{include_num_input_tokens_seen: true}", "include_num_input_tokens_seen", "all"),
    ],
)  # fmt: skip
def test_what_yaml_makes_of_an_argument_is_understood(given: str, name: str, expected: Any) -> None:
    assert getattr(arguments(yaml.safe_load(given)), name) == expected


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"learning_rat": 1}, "learning_rat: there is no such training argument. Did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "student.train.learning_rate is 'fast': Input should be a valid number"),
        ({"learning_rate": -1}, "Invalid learning rate: -1"),
        ({"bf16": "maybe"}, "student.train.bf16 is 'maybe': Input should be a valid boolean"),
        ({"max_steps": 2.5}, "student.train.max_steps is 2.5"),
        ({"per_device_train_batch_size": 0}, "student.train.per_device_train_batch_size is 0: it must be 1 or more"),
        ({"gradient_accumulation_steps": -1}, "student.train.gradient_accumulation_steps is -1: it must be 1 or more"),
        ({"num_train_epochs": 0}, "student.train.num_train_epochs is 0.0: it must be greater than 0"),
        ({"eval_strategy": "sometimes"}, "student.train: transformers rejects the arguments: sometimes is not a valid"),
        ({"eval_strategy": True}, "student.train.eval_strategy is true"),
        ({"save_strategy": "best"}, "Set it to epoch or steps; to keep the best student, set student.early_stopping"),
        ({"optim": "adamw_8"}, "adamw_8 is not a valid OptimizerNames"),
        ({"optim": "adamw_bnb_8bit"}, "student.train: transformers rejects the arguments: "),
        ({"lr_scheduler_type": "sawtooth"}, "sawtooth is not a valid SchedulerType"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "student.train: transformers rejects"),
        ({"gradient_checkpointing": True, "activation_checkpointing": False}, "is the old name of activation_"),
        ({"report_to": "tensorbord"}, "transformers has no such integration. Did you mean 'tensorboard'"),
        ({"fsdp": True, "fsdp_config": "nowhere.json"}, "student.train: transformers rejects the arguments: [Errno 2]"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "Shard with fsdp and fsdp_config instead"),
        ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "Liger's loss would replace student.loss"),
    ],
)  # fmt: skip
def test_wrong_values(train: dict[str, Any], words: str) -> None:
    assert words in str(refusal(train))


@on_cpu
def test_precision_on_a_cpu() -> None:
    assert arguments({"bf16": True}).use_cpu  # the library takes it on a CPU only if that is asked for
    assert refusal({"fp16": True}).fix == "set bf16 instead, or neither"
    assert "need a GPU" in refusal({"use_liger_kernel": True}).problem
    assert "runs on a CPU" in refusal({"fsdp": True}, launch={"num_processes": 2}).problem
    assert not arguments({}).use_liger_kernel


@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK.keys() - {"kubeflow"}))
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    error = refusal({"report_to": ["none", name][1:]})
    assert (error.setting, error.value) == ("student.train.report_to", name)
    assert str(error.fix).startswith("run `pip install ")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, ("epoch", "epoch", None)),
        ({"eval_strategy": "steps", "eval_steps": 5}, ("steps", "steps", 5)),
        ({"save_strategy": "steps", "save_steps": 5}, ("steps", "steps", 5)),
        ({"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 0.1}, ("steps", "steps", 0.1)),
    ],
)
def test_early_stopping_evaluates_and_saves_together(train: dict[str, Any], expected: tuple[str, str, Any]) -> None:
    made = arguments(train, early_stopping={"patience": 2})
    assert (made.eval_strategy, made.save_strategy, made.eval_steps) == expected
    assert expected[2] is None or made.save_steps == expected[2]
    assert (made.load_best_model_at_end, made.metric_for_best_model, made.greater_is_better) == (True, "eval_kl", False)


def test_a_student_without_a_divergence_is_judged_by_its_loss() -> None:
    assert arguments({}, early_stopping={}, mode="black-box").metric_for_best_model == "eval_loss"
    weightless = {"weight": 0.0}
    assert arguments({}, early_stopping={}, labels="live", loss=weightless).metric_for_best_model == "eval_loss"
    assert arguments({}, early_stopping={}, labels="stored", loss=weightless).metric_for_best_model == "eval_kl"


@pytest.mark.parametrize(
    ("train", "holdout", "words"),
    [
        ({}, 0.0, "student.early_stopping: it depends on held-out rows, and prompts.holdout is 0"),
        ({"eval_strategy": False}, 0.1, "student.train.eval_strategy or save_strategy is 'no'"),
        ({"save_strategy": "no"}, 0.1, "student.train.eval_strategy or save_strategy is 'no'"),
        ({"eval_strategy": "steps", "save_strategy": "epoch"}, 0.1, "student.train.save_strategy is 'epoch': "),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}, 0.1, "Remove it, or set it to 5"),
        ({"eval_strategy": "steps"}, 0.1, "Set eval_steps"),
        ({"load_best_model_at_end": True}, 0.1, "Set student.early_stopping"),
        ({"metric_for_best_model": "loss"}, 0.1, "Set student.early_stopping"),
    ],
)
def test_contradictions_of_early_stopping(train: dict[str, Any], holdout: float, words: str) -> None:
    assert words in str(refusal(train, holdout=holdout, early_stopping={}))
