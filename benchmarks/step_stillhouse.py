"""Stillhouse's training, from a labelled dataset on disk, like `stillhouse distill`.

`way` is cross-entropy, stored or live; the dataset determines the encoding of stored labels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import TrainingArguments

from benchmarks.stepping import StopWatch, Task, task_from_arguments, tell
from stillhouse.dataset.store import open_dataset
from stillhouse.models.head import split
from stillhouse.models.load import load_language_model
from stillhouse.recipe.student import LossSettings
from stillhouse.student.data.examples import read_examples
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.training.objective import Objective
from stillhouse.student.training.trainer import StudentTrainer
from stillhouse.teachers.live import LiveTransformersTeacher


def main() -> None:
    task = task_from_arguments()
    student = load_language_model(Path(task.student), device="cpu")
    dataset = open_dataset(Path(task.dataset))
    train, validation = (
        read_examples(dataset, name, student, soft=task.way == "stored", by_text=False, max_length=1024)
        for name in ("train", "validation")
    )
    assert len(validation) == 0
    loss = LossSettings()
    objective = Objective(
        divergence, loss.temperature, loss.weight, 0.0 if task.kl_alone else loss.cross_entropy_weight
    )
    if task.way == "cross-entropy":
        objective = Objective(None, 1.0, 0.0, 1.0)
    watch = StopWatch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, label_names=["labels"], **task.arguments)
        teacher = _teacher(task) if task.way == "live" else None
        trainer = StudentTrainer(student, objective, arguments, train, validation, teacher=teacher)
        trainer.add_callback(watch)
        mean = trainer.train().training_loss
    tell(task, watch, mean, ["torch", "transformers"])


def _teacher(task: Task) -> LiveTransformersTeacher:
    lm = load_language_model(Path(task.teacher), device="cpu")
    lm.model.requires_grad_(False)
    return LiveTransformersTeacher(split(lm.model), int(lm.model.config.vocab_size))


if __name__ == "__main__":
    main()
