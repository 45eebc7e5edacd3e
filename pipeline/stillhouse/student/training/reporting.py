"""Reporting a training's metrics besides student.json: `student.train.report_to`, with the library's own callbacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from stillhouse.errors import RecipeError
from stillhouse.recipe.student import StudentSettings
from stillhouse.settings import nearest

_MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}  # modules with another name
_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # pip packages with another name
_BUILT_IN = ("kubeflow",)


def check_reporting(student: StudentSettings, report_to: Sequence[str]) -> None:
    """Refuse an integration that the library does not know, or whose package is not installed.

    Raises:
        RecipeError: an integration is unknown or not installed; the message has the pip command.
    """
    setting = student.setting("train.report_to")
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", *sorted(INTEGRATION_TO_CALLBACK)]
            raise RecipeError(
                "transformers has no such integration", setting=setting, value=name, fix=nearest(name, known)
            )
        if name not in _BUILT_IN and importlib.util.find_spec(_MODULES.get(name, name)) is None:
            raise RecipeError(
                "its package is not installed",
                setting=setting,
                value=name,
                fix=f"run `pip install {_PACKAGES.get(name, name)}`",
            )


def keep_logs(callbacks: Iterable[TrainerCallback], work: Path) -> None:
    """Make TensorBoard write to `logs/` next to the work folder, which is deleted when the student is finished.

    TENSORBOARD_LOGGING_DIR, if set, takes precedence. A resumed training writes to the same folder as before.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(work.parent / "logs" / work.name.removeprefix(".work-"))
