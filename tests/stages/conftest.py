"""Recipes whose teacher is fine-tuned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe.recipe import Recipe
from tests.conftest import MakeRecipe

Tuned = Callable[..., Recipe]
TRAIN: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "logging_steps": 1,
}


@pytest.fixture
def tuned(tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> Tuned:
    """Makes recipes whose teacher is fine-tuned; keyword arguments are settings of `teacher.finetune`."""

    def make(
        *, model: Path = tiny_model, student: Any = None, evaluate: Any = None, teacher: Any = None, **finetune: Any
    ) -> Recipe:
        parts = tiny_recipe().model_dump(mode="json", by_alias=True)
        settings = {"root": str(tmp_path / "teachers"), "train": TRAIN, **finetune}
        return tiny_recipe(
            teacher={**parts["teacher"], "model": str(model), "finetune": settings, **(teacher or {})},
            student={**parts["student"], **(student or {})},
            evaluate={**parts["evaluate"], "baselines": ["untrained", "gold", "black-box"], **(evaluate or {})},
        )

    return make
