"""Where a training's figures go besides student.json: `student.train.report_to`, with the library's own callbacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from stillhouse.errors import RecipeError
from stillhouse.settings import nearest

_MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}  # where the module has another name
_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # likewise what is installed
_BUILT_IN = ("kubeflow",)


def check_reporting(report_to: Sequence[str]) -> None:
    """Refuse a place that the library does not know, or whose package is not installed.

    Raises:
        RecipeError: it names the place and the pip command.
    """
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            hint = nearest(name, ["none", *sorted(INTEGRATION_TO_CALLBACK)])
            raise RecipeError(f"student.train.report_to is {name!r}: there is no such place to report to.{hint}")
        if name not in _BUILT_IN and importlib.util.find_spec(_MODULES.get(name, name)) is None:
            raise RecipeError(
                f"student.train.report_to is {name!r}, and its package is not installed: "
                f"pip install {_PACKAGES.get(name, name)}"
            )


def keep_logs(callbacks: Iterable[TrainerCallback], work: Path) -> None:
    """Have TensorBoard's files written to `logs/` beside the work folder, which goes when the student is finished.

    TENSORBOARD_LOGGING_DIR, if it is set, still says where. A resumed training writes to the folder it began in.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(work.parent / "logs" / work.name.removeprefix(".work-"))
