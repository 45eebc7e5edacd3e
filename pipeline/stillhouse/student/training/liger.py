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

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def liger_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments for Liger that can be set before the student is known.

    Args:
        given: the recipe's own training arguments.

    Raises:
        RecipeError: the kernels are requested without a GPU or the package, or one of Liger's own losses is turned on.
    """
    config = given.get("liger_kernel_config") or {}
    for name in _LOSSES:
        if config.get(name):
            raise RecipeError(
                f"student.train.liger_kernel_config.{name} is true: Liger's loss would take the place of student.loss. "
                "Take it away"
            )
    asked = given.get("use_liger_kernel")
    gpu, installed = torch.cuda.is_available(), importlib.util.find_spec("liger_kernel") is not None
    if asked and not gpu:
        raise RecipeError("student.train.use_liger_kernel is true, and Liger's kernels need a GPU: take it away")
    if asked and not installed:
        raise RecipeError(
            "student.train.use_liger_kernel is true, and the package is not installed: pip install liger-kernel"
        )
    return {
        "use_liger_kernel": gpu and installed and asked is not False,
        "liger_kernel_config": {**config, **dict.fromkeys(_LOSSES, False)},
    }


def disable_unsupported_liger(arguments: TrainingArguments, model_type: str, *, asked: bool) -> None:
    """Turn the kernels off if Liger has none for this type of model.

    Raises:
        RecipeError: the recipe requests the kernels, and Liger has none for this type of model.
    """
    if not arguments.use_liger_kernel:
        return
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of back ends that other machines have
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    arguments.use_liger_kernel = model_type in MODEL_TYPE_TO_APPLY_LIGER_FN
    if asked and not arguments.use_liger_kernel:
        raise RecipeError(
            f"student.train.use_liger_kernel is true, and Liger has no kernels for a {model_type} model: take it away"
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
