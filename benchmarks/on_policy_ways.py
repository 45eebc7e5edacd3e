"""The ways to go on with one student that `on_policy_rounds.py` compares, and the recipe that they share.

The task is WordNet's dictionary (glosses_data.py): a fine-tuned teacher, and a student of 8 of its 30 layers with the
whole vocabulary (TRL needs both models to have one). It learns one epoch of the teacher's answers, and every way goes on
from this student.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.glosses_data import RECIPE
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe

MAX_TOKENS = 24  # of an answer
BATCH = 8  # rows per optimizer step
LEARNING_RATE = 2e-4  # of what comes after the first epoch
MIX = 0.5  # share of the teacher's rows, in the way that has both
REVERSE = "reverse-kl"
LIKELIEST = 256  # tokens whose scores are stored; the tail is not compared token by token


@dataclass(frozen=True)
class Plan:
    """The size of the work."""

    rounds: int
    prompts: int  # in each round
    held_out: int  # held-out prompts that are measured
    seeds: tuple[int, ...]
    source_limit: int | None = None  # prompts; None: as in the recipe

    @property
    def prompts_of_both(self) -> int:
        """Prompts in each round that also has as many of the teacher's rows, for about the same time."""
        return self.prompts * 2 // 3


@dataclass(frozen=True)
class Training:
    """One training: the argument of `on_policy_train.py` and, for the way `trl`, of `on_policy_trl.py`."""

    way: str
    seed: int
    folder: str  # of the dataset: each training has a copy of its own, and no scores of another
    start: str  # folder of that student
    out: str  # folder of the new student
    rounds: int
    prompts: int
    steps: int = 0  # for more epochs

    def as_argument(self) -> str:
        return json.dumps(asdict(self))


def training_of(argument: str) -> Training:
    return Training(**json.loads(argument))


def plan_of(small: bool) -> Plan:
    if small:
        return Plan(rounds=1, prompts=16, held_out=8, seeds=(0,), source_limit=48)
    return Plan(rounds=3, prompts=256, held_out=180, seeds=(0, 1, 2))


def first_recipe(folder: Path, limit: int | None = None) -> Recipe:
    """Return the recipe of the dataset and of the first student."""
    return load_recipe(RECIPE, _overrides(folder, folder / "students", limit))


def recipe_of(training: Training, **student: Any) -> Recipe:
    """Return the recipe of a training; `student` are settings of its student."""
    folder = Path(training.folder)
    recipe = load_recipe(RECIPE, [*_overrides(folder, Path(training.out), None), f"seed={training.seed}"])
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["student"] |= {"init": {"model": training.start}, **student}
    raw["student"]["train"] |= {"learning_rate": LEARNING_RATE, "per_device_train_batch_size": BATCH}
    return Recipe.model_validate(raw)


def _overrides(folder: Path, students: Path, limit: int | None) -> list[str]:
    settings: dict[str, Any] = {
        "dataset.root": str(folder / "labels"),
        "students": str(students),
        "teacher.finetune.root": str(folder / "teachers"),
        "label.sampling.max_tokens": MAX_TOKENS,
        "evaluate.baselines": [],
    }
    if limit:  # a trial
        settings |= {"prompts.limit": limit, "references.limit": limit, "teacher.finetune.train.max_steps": 10}
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]
