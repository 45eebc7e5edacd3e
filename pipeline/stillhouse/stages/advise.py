"""What to expect of distilling a recipe, before it is paid for: `stillhouse advise`.

    advice = advise(recipe)
    for line in advice.lines():
        print(line)

The teacher answers a few held-out prompts that have a reference, and a student of the recipe's shape learns from the
references alone for some steps. Where the teacher is clearly better, its labels have something to teach; where it is not, a
student needs no teacher. The answers are kept: labelling finds them and asks only for the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.evaluation.measures.bootstrap import interval, resampled_totals
from stillhouse.evaluation.metrics.base import NamedMetric, open_metrics
from stillhouse.evaluation.results import Interval
from stillhouse.labelling.engine import label
from stillhouse.labelling.new_version import advised_name
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.progress import Progress, silent
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.evaluate import MetricSettings
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import Prompt, Row
from stillhouse.stages.finetune import gold_dataset
from stillhouse.stages.stages import distill_stage
from stillhouse.storage.durable import write_atomically

ASKED = 60  # held-out prompts that the teacher answers
STEPS = 60  # optimizer steps of the student without a teacher
_FEWEST = 8  # references that a student is trained on


@dataclass(frozen=True)
class Advice:
    """What was found, and what to expect of it."""

    prompts: int  # to train on
    references: int  # of them, with a reference
    held_out: int  # held-out prompts with a reference
    asked: int  # of them, those that were measured
    metric: str
    lower_is_better: bool
    percent: bool
    digits: int
    teacher: Interval | None  # None: no held-out prompt has a reference
    without_teacher: Interval | None  # of the student that learnt from references; None: there are too few
    difference: Interval | None  # teacher less that student, of the same prompts; above 0: the teacher is better
    steps: int  # of that student

    def lines(self) -> list[str]:
        """Return the advice in a few lines."""
        found = [
            f"{self.prompts:,} prompts to train on, {self.references:,} of them with a reference; {self.held_out:,} "
            f"held-out prompts with one."
        ]
        if self.teacher is None:
            return [
                *found,
                "No held-out prompt has a reference, so nothing can be said of the teacher's answers. Add references to "
                "some prompts (prompts.reference), a hundred or more.",
            ]
        found.append(
            f"The teacher: {self.metric} {self._shown(self.teacher)} on {self.asked} of them. A student rarely gets better "
            "than its labels."
        )
        if self.without_teacher is None:
            return [
                *found,
                f"There are fewer than {_FEWEST} references to train on, so a student has only the teacher to learn from: "
                "expect it below the teacher, by how much depends on its size.",
            ]
        found.append(
            f"A student of the recipe's shape, on the references alone for {self.steps} steps: {self.metric} "
            f"{self._shown(self.without_teacher)}. More steps may raise it."
        )
        return [*found, self._verdict(), _UNKNOWN]

    def _verdict(self) -> str:
        assert self.difference is not None
        shown = self._shown(self.difference)
        if self.difference.low > 0:
            return f"The teacher is better by {shown}: that much its labels can give. Distillation should pay."
        if self.difference.high < 0:
            return (
                f"The student without a teacher is better by {self._shown(_negative(self.difference))}: do not distil this "
                "teacher. Fine-tune it first (teacher.finetune), or take a better one."
            )
        return (
            f"The two cannot be told apart (difference {shown}): expect little of distillation, unless you have many more "
            "prompts than references. Fine-tune the teacher first, or measure more held-out prompts."
        )

    def _shown(self, one: Interval) -> str:
        factor, sign = (100, " %") if self.percent else (1, "")
        mean, low, high = (f"{factor * value:.{self.digits}f}" for value in (one.mean, one.low, one.high))
        return f"{mean}{sign} [{low}, {high}]"


_UNKNOWN = (
    "What this cannot know: how near a student of this size comes to the teacher, and what the same references give with "
    "more steps. `stillhouse run` with evaluate.baselines: [gold] measures both."
)


def advise(recipe: Recipe, progress: Progress = silent) -> Advice:
    """Ask the teacher a few prompts, train a short student without it, and compare them.

    Raises:
        RecipeError: a setting is wrong, or the recipe has no student.
        TeacherUnavailable: the teacher cannot be reached, or has not been fine-tuned yet.
        BudgetSpent: the answers would exceed the budget.
        DatasetRefused: the teacher answered none of the prompts.
    """
    student = recipe.student
    if student is None:
        raise RecipeError("the recipe has none", setting="student", fix="add it: its shape is a part of the question")
    (metric, *_) = open_metrics(recipe.evaluate.metrics or (MetricSettings(kind="rouge"),))
    prompts = _look_at(recipe)
    asked = list(prompts.asked)
    teacher = without = difference = None
    steps = 0
    if asked:
        answers = _teacher_answers(recipe, asked, progress)
        asked = [one for one in asked if one.id in answers]
        if not asked:
            raise DatasetRefused(
                f"the teacher answered none of {len(prompts.asked)} prompts",
                fix=f"read the reasons with `stillhouse datasets show {advised_name(recipe.dataset)}`",
            )
        of_teacher = _statistics(metric, [answers[one.id] for one in asked], asked)
        teacher = _interval(metric, of_teacher)
        if prompts.references >= _FEWEST:
            said, steps = _answers_without_teacher(recipe, student, asked, progress)
            of_student = _statistics(metric, said, asked)
            without = _interval(metric, of_student)
            difference = _difference(metric, of_teacher, of_student)
    return Advice(
        prompts=prompts.train,
        references=prompts.references,
        held_out=prompts.held_out,
        asked=len(asked),
        metric=metric.name,
        lower_is_better=metric.metric.lower_is_better,
        percent=metric.metric.percent,
        digits=metric.metric.digits,
        teacher=teacher,
        without_teacher=without,
        difference=difference,
        steps=steps,
    )


@dataclass(frozen=True)
class _Prompts:
    """The numbers of prompts, and the first held-out ones that have a reference."""

    train: int
    references: int  # of training prompts
    held_out: int  # with a reference
    asked: tuple[Prompt, ...]


def _look_at(recipe: Recipe) -> _Prompts:
    """Read the prompts once, and the references if they come from elsewhere."""
    train = references = held_out = 0
    asked: list[Prompt] = []
    for prompt in read_prompts(recipe.prompts):
        has_reference = prompt.reference is not None
        if split_of(prompt, recipe.prompts.holdout) == "train":
            train, references = train + 1, references + has_reference
        elif has_reference:
            held_out += 1
            if len(asked) < ASKED:
                asked.append(prompt)
    if recipe.references is not None:
        known = (one for one in read_prompts(recipe.references) if one.reference is not None)
        references = sum(split_of(one, recipe.prompts.holdout) == "train" for one in known)
    return _Prompts(train, references, held_out, tuple(asked))


# ------------------------------------------------------------------------------------------------------------ the teacher


def _teacher_answers(recipe: Recipe, asked: list[Prompt], progress: Progress) -> dict[str, str]:
    """Have the teacher answer prompts, in a dataset of their own that labelling reads; return the texts by prompt id."""
    written = run_coroutine(label(_asking(recipe, asked), progress)).dataset
    return {row["prompt_id"]: row["completion"][-1]["content"] for row in _rows(written)}


def _rows(dataset: Dataset) -> list[Row]:
    return [row for row in dataset.rows("train") if row["sample"] == 0]


def _asking(recipe: Recipe, asked: list[Prompt]) -> Recipe:
    """Return the recipe that asks these prompts as labelling does; a teacher that scores references writes text here."""
    source = Path(recipe.evaluate.reports) / recipe.name / "advice-prompts.jsonl"
    lines = [{"messages": [turn.as_dict() for turn in one.messages], "reference": one.reference} for one in asked]
    write_atomically(source, "".join(json.dumps(line) + "\n" for line in lines).encode())
    settings = recipe.label.model_copy(update={"samples": 1})
    if settings.mode == "score":
        settings = settings.model_copy(update={"mode": "generate", "soft": None})
    return recipe.model_copy(
        update={
            "prompts": PromptSettings(source=str(source), last_turn="continue", holdout=0),
            "references": None,
            "teacher": recipe.teacher.as_finetuned,
            "label": settings,
            "quality": (),
            "dataset": recipe.dataset.model_copy(update={"name": advised_name(recipe.dataset), "version": None}),
            "student": None,
            "on_policy": None,
            "sweep": None,
        }
    )


# ------------------------------------------------------------------------------------------------ the student without it


def _answers_without_teacher(
    recipe: Recipe, student: StudentSettings, asked: list[Prompt], progress: Progress
) -> tuple[list[str], int]:
    """Train a student of the recipe's shape on the references; return its answers and its steps."""
    from stillhouse.models.generate import generate
    from stillhouse.models.load import decode_completion, encode_prompt, load_language_model

    plain = student.init.model_copy(update={"width": None, "vocabulary": "all"})
    if plain.from_ is not None:
        plain = plain.model_copy(update={"choose": "even"})  # importance is measured on labels, which there are none of
    train = {**student.train, "max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no"}
    short = student.model_copy(
        update={"init": plain, "mode": "gold", "train": train, "quantize": None, "early_stopping": None, "launch": None}
    )
    own = recipe.model_copy(
        update={"name": f"{recipe.name}-advise", "student": short, "on_policy": None, "sweep": None}
    )
    made = distill_stage(own, short, gold_dataset(recipe, progress), progress)
    lm = load_language_model(Path(made.folder), trust_remote_code=student.trust_remote_code)
    prompts = [encode_prompt(lm.tokenizer, one.messages) for one in asked]
    size = recipe.evaluate.batch_size
    written = [
        tokens
        for start in range(0, len(prompts), size)
        for tokens in generate(lm, prompts[start : start + size], max_tokens=recipe.label.sampling.max_tokens)
    ]
    texts = [decode_completion(lm, tokens, prompt) for tokens, prompt in zip(written, asked, strict=True)]
    return texts, made.card.steps


# ------------------------------------------------------------------------------------------------------------ the figures


def _statistics(metric: NamedMetric, answers: list[str], asked: list[Prompt]) -> np.ndarray:
    """Return the statistics of each answer: (prompts, k)."""
    rows = [metric.metric.statistics(answer, one.reference or "") for answer, one in zip(answers, asked, strict=True)]
    return np.array(rows, dtype=np.float64)


def _interval(metric: NamedMetric, statistics: np.ndarray) -> Interval:
    score = metric.metric.score
    return interval(float(score(statistics.sum(axis=0))), score(resampled_totals(statistics)))


def _difference(metric: NamedMetric, teacher: np.ndarray, student: np.ndarray) -> Interval:
    """Return by how much the teacher is better, over the same resamples."""
    score, sign = metric.metric.score, -1 if metric.metric.lower_is_better else 1
    mean = sign * (score(teacher.sum(axis=0)) - score(student.sum(axis=0)))
    return interval(float(mean), sign * (score(resampled_totals(teacher)) - score(resampled_totals(student))))


def _negative(one: Interval) -> Interval:
    return Interval(-one.mean, -one.high, -one.low)
