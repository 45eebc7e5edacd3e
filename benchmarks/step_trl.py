"""TRL's `GKDTrainer`, set up to do the same work: a live teacher, given texts only, forward KL.

- `lmbda=0`: it generates nothing and learns from the rows.
- `beta=0`: its divergence is the forward KL over the whole vocabulary; `temperature` affects only generation.
- Its rows are token ids, with a collator as simple as Stillhouse's, so neither side tokenizes anything.
- Gradient checkpointing and bf16, which are on by default, are off: both would be slower here.

TRL's newer `DistillationTrainer` always generates with the student first, so it cannot learn from given texts.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.stepping import StopWatch, task_from_arguments, tell

_IGNORED = -100


def main() -> None:
    task = task_from_arguments()
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (task.student, task.teacher)
    )
    tokenizer = AutoTokenizer.from_pretrained(task.student)
    rows = json.loads(Path(task.rows).read_text(encoding="utf-8"))
    watch = StopWatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = GKDConfig(output_dir=folder, lmbda=0.0, beta=0.0, **task.arguments)
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            data_collator=lambda part: _collate(part, int(tokenizer.pad_token_id)),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        loss = trainer.train().training_loss
    tell(task, watch, loss, ["trl", "torch", "transformers"])


def _collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return a right-padded batch, (batch, time) each."""
    shape = (len(rows), max(len(row["prompt"]) + len(row["completion"]) for row in rows))
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, _IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for place, row in enumerate(rows):
        begin, end = len(row["prompt"]), len(row["prompt"]) + len(row["completion"])
        input_ids[place, :end] = torch.tensor([*row["prompt"], *row["completion"]])
        labels[place, begin:end] = input_ids[place, begin:end]
        attention_mask[place, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


if __name__ == "__main__":
    main()
