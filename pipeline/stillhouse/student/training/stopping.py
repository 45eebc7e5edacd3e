"""Reasons to end a training before its last step: early stopping, and a loss that is not a number.

Early stopping: a training ends when its held-out divergence no longer falls, and its best student is kept.

    student: {early_stopping: {patience: 3, min_delta: 0.001}}

The metric is `eval_kl`, the forward KL from the teacher's labels, `eval_loss` for a student that learns from text alone,
or `eval_cross_entropy`, on the references, for one whose teacher learns along.
The best student must have been saved, so every evaluation comes with a checkpoint. Each checkpoint has the count of
evaluations without improvement, so that a resumed training ends where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
            "it depends on held-out rows, and prompts.holdout is 0",
            setting=student.setting("early_stopping"),
            fix="set prompts.holdout to 0.1, or remove early_stopping",
        )
    together: dict[str, Any] = {}
    for evaluation, saving in _PAIRS:
        one = given.get(evaluation, given.get(saving))
        other = given.get(saving, one)
        if one != other:
            raise RecipeError(
                f"early stopping keeps the best of the saved students, so {saving} must be equal to {evaluation} ({one!r})",
                setting=student.setting(f"train.{saving}"),
                value=other,
                fix=f"remove it, or set it to {one!r}",
            )
        if one is not None:
            together |= {evaluation: one, saving: one}
    if together.get("eval_strategy") == "no":
        raise RecipeError(
            f"it evaluates held-out rows and keeps the best student, and {student.setting('train.eval_strategy')} or "
            "save_strategy is 'no'",
            setting=student.setting("early_stopping"),
            fix="set both to epoch or steps, or remove early_stopping",
        )
    if together.get("eval_strategy") == "steps" and "eval_steps" not in together:
        raise RecipeError(
            "with early stopping, the number of steps between evaluations is needed",
            setting=student.setting("train.eval_strategy"),
            value="steps",
            fix="set eval_steps",
        )
    return together | {
        "load_best_model_at_end": True,
        "metric_for_best_model": _metric(recipe, student),
        "greater_is_better": False,
    }


def _metric(recipe: Recipe, student: StudentSettings) -> str:
    if recipe.learns_references(student.mode) and student.mode == "white-box":
        return "eval_cross_entropy"  # a divergence from a teacher that changes says little
    has_divergence = student.needs_soft_labels or (student.needs_live_teacher and student.loss.weight > 0)
    return "eval_kl" if has_divergence else "eval_loss"


def _diverged(
    name: str, value: float, args: TrainingArguments, state: TrainerState, learning_rate_setting: str
) -> TrainingError:
    what = "not a number" if math.isnan(value) else "infinite"
    return TrainingError(
        f"the training has diverged: {name} is {what} after step {state.global_step}",
        setting=learning_rate_setting,
        value=args.learning_rate,
        fix="lower it",
    )


class StopDiverged(TrainerCallback):
    """Ends a training whose last loss is not a number, at the next log; the library logs at the end of every training.

    An infinite loss is no reason to stop: its gradient may be finite (losses/forward_kl.py).
    """

    def __init__(self, last_loss: Callable[[], Tensor | None], learning_rate_setting: str) -> None:
        self._last_loss = last_loss
        self._learning_rate_setting = learning_rate_setting  # for errors

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check the last loss.

        Raises:
            TrainingError: it is not a number, so the weights are not numbers either.
        """
        loss = self._last_loss()
        if loss is not None and bool(loss.isnan()):
            raise _diverged("the loss", math.nan, args, state, self._learning_rate_setting)


class StopEarly(EarlyStoppingCallback):
    """The library's callback, which restores its count from a checkpoint."""

    def __init__(
        self,
        early_stopping_patience: int,
        early_stopping_threshold: float,
        learning_rate_setting: str = "student.train.learning_rate",
    ) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self._learning_rate_setting = learning_rate_setting  # for errors

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
        metric = metrics.get(args.metric_for_best_model, math.nan)
        if not math.isfinite(metric):
            raise _diverged(str(args.metric_for_best_model), metric, args, state, self._learning_rate_setting)
        super().on_evaluate(args, state, control, metrics, **named)
