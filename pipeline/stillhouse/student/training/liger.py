"""Liger's fused GPU kernels (https://github.com/linkedin/Liger-Kernel), where available.

They are used if CUDA, the package and kernels for the model's type are available, unless the recipe turns them off with
`student.train.use_liger_kernel`. Liger's own losses stay off: they are cross-entropies, and the head is ours (forward.py).
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainingArguments

from stillhouse.errors import RecipeError
from stillhouse.recipe.student import StudentSettings

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def liger_arguments(student: StudentSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments for Liger that can be set before the student is known.

    Args:
        student: the student to train.
        given: the recipe's own training arguments.

    Raises:
        RecipeError: the kernels are requested without a GPU or the package, or one of Liger's own losses is turned on.
    """
    config = given.get("liger_kernel_config") or {}
    for name in _LOSSES:
        if config.get(name):
            raise RecipeError(
                f"Liger's loss would replace {student.setting('loss')}",
                setting=student.setting(f"train.liger_kernel_config.{name}"),
                value=config[name],
                fix="remove it",
            )
    asked, setting = given.get("use_liger_kernel"), student.setting("train.use_liger_kernel")
    gpu, installed = torch.cuda.is_available(), importlib.util.find_spec("liger_kernel") is not None
    if asked and not gpu:
        raise RecipeError("Liger's kernels need a GPU", setting=setting, value=asked, fix="remove it")
    if asked and not installed:
        raise RecipeError(
            "the package is not installed",
            setting=setting,
            value=asked,
            fix="run `pip install liger-kernel`, or remove it",
        )
    return {
        "use_liger_kernel": gpu and installed and asked is not False,
        "liger_kernel_config": {**config, **dict.fromkeys(_LOSSES, False)},
    }


def disable_unsupported_liger(arguments: TrainingArguments, student: StudentSettings, model_type: str) -> None:
    """Turn the kernels off if Liger has none for this type of model.

    Raises:
        RecipeError: the recipe requests the kernels, and Liger has none for this type of model.
    """
    if not arguments.use_liger_kernel:
        return
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of back ends that other machines have
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    arguments.use_liger_kernel = model_type in MODEL_TYPE_TO_APPLY_LIGER_FN
    if "use_liger_kernel" in student.train and not arguments.use_liger_kernel:
        raise RecipeError(
            f"Liger has no kernels for a {model_type} model",
            setting=student.setting("train.use_liger_kernel"),
            value=student.train["use_liger_kernel"],
            fix="remove it",
        )


@contextmanager
def restore_patched_module(model: torch.nn.Module) -> Iterator[None]:
    """Restore, on exit, everything that is replaced in the module that defines the model's class.

    Liger replaces classes and functions there, so that every later model of that type, on any device, would use them: a
    model on a CPU could not run.
    """
    module = sys.modules[type(model).__module__]
    before: dict[str, Any] = dict(vars(module))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
