"""Train one student by one way of on_policy_ways.py, and print its folder and the seconds that it took.

    python -m benchmarks.on_policy_train '{"way": "rounds", ...}'     # a `Training`

The seconds begin when the libraries are imported, as TRL's do, and end when the student is on the disk.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from benchmarks.on_policy_ways import LIKELIEST, MAX_TOKENS, MIX, REVERSE, Training, recipe_of, training_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import DataSettings
from stillhouse.stages.rounds.recipes import rollouts_name
from stillhouse.stages.rounds.run import RoundSteps
from stillhouse.stages.rounds.stage import rounds_stage, score_rollouts
from stillhouse.stages.stages import distill_stage, recipe_dataset
from stillhouse.student.finished.folder import StudentResult


def rounds(training: Training, mix: float) -> StudentResult:
    """Run rounds from the first student; they score into a dataset of their own."""
    recipe = recipe_of(training)
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["on_policy"] = {
        "rounds": training.rounds,
        "prompts": training.prompts,
        "sampling": {"temperature": 1.0, "max_tokens": MAX_TOKENS},
        "mix": mix,
        "loss": {"kind": REVERSE, "cross_entropy_weight": 0.0},
        "soft": {"k": LIKELIEST},
    }
    recipe = Recipe.model_validate(raw)
    assert recipe.student is not None
    steps = RoundSteps(score_rollouts, distill_stage)
    labelled = recipe_dataset(recipe)
    return rounds_stage(recipe, recipe.student, labelled, Path(training.start), steps)


def more_epochs(training: Training) -> StudentResult:
    """Learn from the teacher's own dataset for a number of steps."""
    recipe = recipe_of(training)
    assert recipe.student is not None
    train = {**recipe.student.train, "max_steps": training.steps, "eval_strategy": "no"}
    student = recipe.student.model_copy(update={"train": train})
    return distill_stage(recipe.model_copy(update={"student": student}), student, recipe_dataset(recipe))


def stored_rounds(training: Training) -> StudentResult:
    """Learn from the rollouts that another student wrote and its teacher scored, with nothing asked again."""
    recipe = recipe_of(training, loss={"kind": REVERSE, "cross_entropy_weight": 0.0})
    assert recipe.student is not None
    labelled = recipe_dataset(recipe)
    name = rollouts_name(recipe)
    total = training.rounds * training.prompts
    data = [DataSettings(dataset=name, version=number + 1) for number in range(training.rounds)]
    data.append(DataSettings(dataset=labelled.manifest.name, rows=round(total * MIX / (1 - MIX))))
    student = recipe.student.model_copy(
        update={"data": tuple(data), "train": {**recipe.student.train, "num_train_epochs": 1}}
    )
    return distill_stage(recipe.model_copy(update={"student": student}), student, labelled)


def main() -> None:
    training = training_of(sys.argv[1])
    began = time.perf_counter()
    if training.way == "more epochs":
        result = more_epochs(training)
    elif training.way == "stored rounds":
        result = stored_rounds(training)
    else:
        result = rounds(training, {"rounds": 0.0, "half and half": MIX}[training.way])
    seconds = time.perf_counter() - began
    made = Path(training.out) / "student"
    shutil.copytree(result.folder, made)
    print(json.dumps({"folder": str(made), "seconds": seconds, "steps": result.card.steps}), flush=True)


if __name__ == "__main__":
    main()
