"""Early stopping: a training ends when its held-out divergence no longer falls, and its best student is kept.

    student: {early_stopping: {patience: 3, min_delta: 0.001}}

The metric is `eval_kl`, the forward KL from the teacher's labels, or `eval_loss` for a student that learns from text alone.
The best student must have been saved, so every evaluation comes with a checkpoint. Each checkpoint has the count of
evaluations without improvement, so that a resumed training ends where an uninterrupted one does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings

_PAIRS = (("eval_strategy", "save_strategy"), ("eval_steps", "save_steps"))


def stopping_arguments(recipe: Recipe, student: StudentSettings, given: dict[str, Any]) -> dict[str, Any]:
    """Return the training arguments that early stopping needs: an evaluation and a checkpoint, always together.

    Args:
        recipe: the recipe, for its held-out share.
        student: the student to train.
        given: the recipe's own training arguments; a schedule given for evaluations alone applies to checkpoints too.

    Raises:
        RecipeError: the settings leave nothing to evaluate on, save no checkpoints, or schedule the two differently.
    """
    if student.early_stopping is None:
        return {}
    if recipe.prompts.holdout == 0:
        raise RecipeError(
            "student.early_stopping is set and prompts.holdout is 0: it goes by held-out rows. Set prompts.holdout to 0.1, "
            "or take student.early_stopping away"
        )
    together: dict[str, Any] = {}
    for evaluation, saving in _PAIRS:
        one = given.get(evaluation, given.get(saving))
        other = given.get(saving, one)
        if one != other:
            raise RecipeError(
                f"student.early_stopping is set, student.train.{evaluation} is {one!r} and {saving} is {other!r}: the best "
                f"student is one that was saved when it was judged. Take {saving} away, or set it to {one!r}"
            )
        if one is not None:
            together |= {evaluation: one, saving: one}
    if together.get("eval_strategy") == "no":
        raise RecipeError(
            "student.early_stopping is set, and student.train.eval_strategy or save_strategy is 'no': it goes by held-out "
            "rows and keeps the best student. Set them to epoch or steps, or take student.early_stopping away"
        )
    if together.get("eval_strategy") == "steps" and "eval_steps" not in together:
        raise RecipeError(
            "student.early_stopping is set and student.train.eval_strategy is 'steps': say how many, with eval_steps"
        )
    return together | {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_kl" if _has_divergence(student) else "eval_loss",
        "greater_is_better": False,
    }


def _has_divergence(student: StudentSettings) -> bool:
    return student.needs_soft_labels or (student.needs_live_teacher and student.loss.weight > 0)


class StopEarly(EarlyStoppingCallback):
    """The library's callback, which restores its count from a checkpoint."""

    def __init__(self, early_stopping_patience: int, early_stopping_threshold: float) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)  # the folder may have moved since it was written
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **named: Any,
    ) -> None:
        """Compare an evaluation with the best one.

        Raises:
            TrainingError: the metric is NaN or infinite: the training has diverged.
        """
        judged = metrics.get(args.metric_for_best_model, math.nan)
        if not math.isfinite(judged):
            what = "not a number" if math.isnan(judged) else "infinite"
            raise TrainingError(
                f"after step {state.global_step} {args.metric_for_best_model} is {what}: the training has diverged. "
                f"student.train.learning_rate is {args.learning_rate}: lower it"
            )
        super().on_evaluate(args, state, control, metrics, **named)
