"""Stillhouse: turn a large teacher language model into a small student.

    prompts -> teacher -> labelled dataset -> student -> report

    >>> import stillhouse
    >>> recipe = stillhouse.load_recipe("flows/recipes/quickstart.yaml")
    >>> recipe.teacher.model
    'data/models/smollm2-135m-instruct'

    result = stillhouse.run(recipe)

What is listed in `__all__` is the library; `stillhouse.api` documents the functions. Importing the package imports nothing
else: each name is loaded when it is first used. docs/architecture.md describes the rooms below this one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from stillhouse.api import (
        RecipeLike,
        distill,
        distill_async,
        evaluate,
        evaluate_async,
        label,
        label_async,
        load_recipe,
        open_dataset,
        plan,
        run,
        run_async,
    )
    from stillhouse.dataset.arrays import RowLabels, soft_labels
    from stillhouse.dataset.store import Dataset
    from stillhouse.errors import StillhouseError
    from stillhouse.evaluation.evaluate import EvaluationResult
    from stillhouse.evaluation.metrics.base import Metric
    from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
    from stillhouse.labelling.estimate import Estimate
    from stillhouse.labelling.result import LabelResult
    from stillhouse.progress import Progress, silent
    from stillhouse.quality.base import Filter
    from stillhouse.recipe.recipe import Recipe
    from stillhouse.stages.stages import RunResult
    from stillhouse.student.finished.folder import StudentResult
    from stillhouse.student.finished.open import Student, open_student
    from stillhouse.student.losses.base import Divergence as Loss
    from stillhouse.teachers.base import Teacher

_FROM = {
    "stillhouse.api": "RecipeLike distill distill_async evaluate evaluate_async label label_async load_recipe open_dataset "
    "plan run run_async",
    "stillhouse.dataset.arrays": "RowLabels soft_labels",
    "stillhouse.dataset.store": "Dataset",
    "stillhouse.errors": "StillhouseError",
    "stillhouse.evaluation.evaluate": "EvaluationResult",
    "stillhouse.evaluation.metrics.base": "Metric",
    "stillhouse.evaluation.sweep.evaluate": "SweepEvaluation",
    "stillhouse.labelling.estimate": "Estimate",
    "stillhouse.labelling.result": "LabelResult",
    "stillhouse.progress": "Progress silent",
    "stillhouse.quality.base": "Filter",
    "stillhouse.recipe.recipe": "Recipe",
    "stillhouse.stages.stages": "RunResult",
    "stillhouse.student.finished.folder": "StudentResult",
    "stillhouse.student.finished.open": "Student open_student",
    "stillhouse.student.losses.base": "Loss",
    "stillhouse.teachers.base": "Teacher",
}
_MODULES = {name: module for module, names in _FROM.items() for name in names.split()}

__all__ = [
    "Dataset",
    "Estimate",
    "EvaluationResult",
    "Filter",
    "LabelResult",
    "Loss",
    "Metric",
    "Progress",
    "Recipe",
    "RecipeLike",
    "RowLabels",
    "RunResult",
    "StillhouseError",
    "Student",
    "StudentResult",
    "SweepEvaluation",
    "Teacher",
    "__version__",
    "distill",
    "distill_async",
    "evaluate",
    "evaluate_async",
    "label",
    "label_async",
    "load_recipe",
    "open_dataset",
    "open_student",
    "plan",
    "run",
    "run_async",
    "silent",
    "soft_labels",
]


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'stillhouse' has no attribute {name!r}")
    module = import_module(_MODULES[name])
    value = getattr(module, "Divergence" if name == "Loss" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the library."""
    return __all__
