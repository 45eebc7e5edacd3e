"""`student.train` of a recipe as `transformers.TrainingArguments`, on top of Stillhouse's own defaults.

Every argument of the library either works here, or is refused with the reason and an alternative: none is accepted and then
ignored. A refused argument may still be set to the library's own default.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import IntervalStrategy, Trainer, TrainingArguments, get_scheduler

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.settings import nearest
from stillhouse.student.training.liger import liger_arguments
from stillhouse.student.training.reporting import check_reporting
from stillhouse.student.training.sharded import check_sharding
from stillhouse.student.training.stopping import stopping_arguments

_OURS = "Stillhouse sets it"
_NO_EFFECT = "it would have no effect"
_NOT_EXACT = "a resumed training would no longer be identical to an uninterrupted one"
_HUB = "a recipe publishes nothing", "upload the finished student's folder with `hf upload`"
_KEEP_BEST = "set {early_stopping}, which keeps the best student by the held-out divergence"
_COMPILE = "the loss has another shape with every batch, and would be compiled again for each"

_REFUSED: dict[str, str | tuple[str, str]] = {  # why a recipe cannot set an argument; or why, and what to do instead
    **dict.fromkeys(("output_dir", "remove_unused_columns", "label_names", "disable_tqdm", "local_rank"), _OURS),
    "resume_from_checkpoint": (_OURS, "run the command again to resume from the last checkpoint"),
    "restore_callback_states_from_checkpoint": _OURS,
    "label_smoothing_factor": "the losses do not support it; the teacher's distribution smooths the targets",
    "average_tokens_across_devices": "the loss is a mean over the tokens of all processes, whatever their number",
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), (_OURS, _KEEP_BEST)),
    **dict.fromkeys(("ignore_data_skip", "save_only_model"), _NOT_EXACT),
    "auto_find_batch_size": (_NOT_EXACT, "set per_device_train_batch_size and gradient_accumulation_steps"),
    "enable_jit_checkpoint": (
        "it is not supported",
        "set save_strategy to steps, and save_steps to the number of steps that you can afford to lose",
    ),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILE),
    **dict.fromkeys(("accelerator_config", "parallelism_config"), f"{_OURS}, so that all processes have equal shares"),
    "deepspeed": ("it is not supported", "shard with fsdp and fsdp_config instead"),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"), _HUB),
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "use_cache", "length_column_name"), _NO_EFFECT),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _NO_EFFECT),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _NO_EFFECT),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), f"{_NO_EFFECT}: bf16 and fp16 apply to evaluation too"),
}
_ALIASES = {  # names that the library is about to remove
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
_YAML_NO = {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "report_to": "none"}  # YAML's `no`
_AT_LEAST_1 = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 5e-5,
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "eval_strategy": "epoch",
    "report_to": "none",
    "ddp_find_unused_parameters": False,
}


def training_arguments(recipe: Recipe, student: StudentSettings, folder: Path) -> TrainingArguments:
    """Return `student.train` as transformers.TrainingArguments, on top of Stillhouse's defaults (`_DEFAULTS`).

    Args:
        recipe: the recipe, for its seed and its name.
        student: the student to train.
        folder: the folder for checkpoints.

    Raises:
        RecipeError: an argument is unknown, wrong, not the recipe's to set, or contradicts another setting.
    """
    given = {_ALIASES.get(name, name): value for name, value in _checked(student).items()}
    settings = {
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "run_name": f"{recipe.name}-{student.mode}",
        **_DEFAULTS,
        "seed": recipe.seed,
        **given,
        **stopping_arguments(recipe, student, given),
        **liger_arguments(student, given),
        **_precision(student, given),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # addressed to callers of the library
            arguments = TrainingArguments(
                output_dir=str(folder),
                remove_unused_columns=False,
                label_names=["labels"],
                disable_tqdm=True,
                **settings,
            )
        _dry_run(student, arguments)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise RecipeError(
            f"transformers rejects the arguments: {error}",
            setting=student.setting("train"),
            fix="correct or remove the argument that it names",
        ) from None
    check_reporting(student, arguments.report_to)
    check_sharding(student, arguments)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # each process has one device: torchrun starts a process for each
    return arguments


def disable_evaluation(arguments: TrainingArguments, student: StudentSettings) -> None:
    """Turn evaluation off for a dataset without held-out rows.

    Raises:
        RecipeError: early stopping or the learning rate schedule depends on held-out rows.
    """
    if arguments.metric_for_best_model is not None:
        dependent = "early_stopping" if student.early_stopping else "train.lr_scheduler_type"
        raise RecipeError(
            f"it depends on held-out rows, and the dataset has none of at most {student.setting('max_length')} "
            f"({student.max_length}) tokens",
            setting=student.setting(dependent),
            fix="set prompts.holdout above 0 and label again, or remove this setting",
        )
    arguments.eval_strategy = IntervalStrategy.NO


def check_drop_last(arguments: TrainingArguments, student: StudentSettings, rows: int) -> None:
    """Refuse `dataloader_drop_last` if the rows do not fill one batch over all processes.

    Args:
        arguments: the training arguments.
        student: the student to train.
        rows: the number of rows to learn from.

    Raises:
        TrainingError: every row would be dropped, and nothing learnt.
    """
    together = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < together:
        raise TrainingError(
            f"it drops the last batch if that is incomplete, and all {rows} rows do not fill one batch of {together}",
            setting=student.setting("train.dataloader_drop_last"),
            value=True,
            fix=f"set it to false, or {student.setting('train.per_device_train_batch_size')} to "
            f"{max(1, rows // arguments.world_size)} or less",
        )


def _checked(student: StudentSettings) -> dict[str, Any]:
    """Return the arguments to pass on, each converted to its type: YAML reads 1e-4 as text, and `no` as a boolean."""
    hints, defaults = (
        get_type_hints(TrainingArguments),
        {field.name: field.default for field in fields(TrainingArguments)},
    )
    hints["fsdp"] = bool | str | None  # the library's own documentation says `true`
    checked, train = {}, student.train
    for name, value in train.items():
        setting = student.setting(f"train.{name}")
        if name in _REFUSED:
            if value is not None and value != defaults[name]:
                raise _refusal(student, name, value)
            continue
        if name not in defaults:
            known = sorted(defaults.keys() - _REFUSED.keys())
            raise RecipeError("there is no such training argument", setting=setting, fix=nearest(name, known))
        if name in _ALIASES and _ALIASES[name] in train:
            raise RecipeError(f"it is the old name of {_ALIASES[name]}", setting=setting, fix="set only one of the two")
        checked[name] = _in_type(
            student, name, _YAML_NO[name] if name in _YAML_NO and value in (False, None) else value, hints[name]
        )
    return checked


def _refusal(student: StudentSettings, name: str, value: Any) -> RecipeError:
    refused = _REFUSED[name]
    reason, fix = refused if isinstance(refused, tuple) else (refused, None)
    return RecipeError(
        f"a recipe cannot set this argument: {reason}",
        setting=student.setting(f"train.{name}"),
        value=value,
        fix=fix.format(early_stopping=student.setting("early_stopping")) if fix else "remove it",
    )


def _in_type(student: StudentSettings, name: str, value: Any, hint: Any) -> Any:
    setting = student.setting(f"train.{name}")
    try:
        typed = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        reasons = " or ".join(dict.fromkeys(str(detail["msg"]) for detail in error.errors()))
        raise RecipeError(reasons, setting=setting, value=value, fix="give a value of that type") from None
    if name == "lr_scheduler_kwargs" and isinstance(typed, dict):
        return {key: _as_number(one) for key, one in typed.items()}
    if name in _AT_LEAST_1 and typed < 1:
        raise RecipeError("it must be 1 or more", setting=setting, value=value, fix="set it to 1 or more")
    if name == "save_strategy" and typed == "best":
        best = _KEEP_BEST.format(early_stopping=student.setting("early_stopping"))
        fix = f"set it to epoch or steps; to keep the best student, {best}"
        raise RecipeError("a resumed training needs regular checkpoints", setting=setting, value=value, fix=fix)
    return typed


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _precision(student: StudentSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Return the library's settings for a precision; fp16 has no gradient scaling on a CPU."""
    on_cpu = bool(given.get("use_cpu")) or not torch.accelerator.is_available()
    if on_cpu and given.get("fp16"):
        raise RecipeError(
            "training runs on a CPU, which has no gradient scaling for fp16",
            setting=student.setting("train.fp16"),
            value=given["fp16"],
            fix="set bf16 instead, or neither",
        )
    return {"use_cpu": True} if on_cpu else {}  # without it, each of several processes treats itself as the only one


def _dry_run(student: StudentSettings, arguments: TrainingArguments) -> None:
    """Build the optimizer and the schedule for one dummy weight, so that their errors are raised before labelling."""
    if not arguments.max_steps > 0 and not arguments.num_train_epochs > 0:
        raise RecipeError(
            "it must be greater than 0, unless max_steps is set",
            setting=student.setting("train.num_train_epochs"),
            value=arguments.num_train_epochs,
            fix="set it to 1 or more, or set max_steps",
        )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    weight = torch.nn.Parameter(torch.zeros(1))
    if arguments.optim_target_modules is None:
        optimizer = kind([weight], **{"lr": arguments.learning_rate, **options})
    else:
        optimizer = torch.optim.SGD([weight], lr=arguments.learning_rate)  # theirs needs a model
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=arguments.get_warmup_steps(2),
        num_training_steps=2,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
