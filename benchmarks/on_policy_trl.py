"""TRL's `GKDTrainer` as on_policy_ways.py has it: the student writes in every step, a live teacher scores, reverse KL.

- `lmbda`: the share of steps whose text the student writes; `beta=1`: reverse KL over the whole vocabulary.
- The prompts, batches, lengths, learning rate and number of rows are those of the rounds.
- Gradient checkpointing and bf16, which are on by default, are off: both would be slower here.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

_IGNORED = -100


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    began = time.perf_counter()
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(task[name], dtype=torch.float32) for name in ("start", "teacher")
    )
    tokenizer = AutoTokenizer.from_pretrained(task["start"])
    rows = json.loads(Path(task["rows"]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        settings = GKDConfig(
            output_dir=folder,
            lmbda=task["lmbda"],
            beta=1.0,
            temperature=1.0,
            max_new_tokens=task["max_tokens"],
            max_steps=task["steps"],
            per_device_train_batch_size=task["batch"],
            learning_rate=task["learning_rate"],
            warmup_steps=0.1,
            seed=task["seed"],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            data_collator=lambda part: _collate(part, int(tokenizer.pad_token_id)),
            processing_class=tokenizer,
        )
        trainer.train()
    student.save_pretrained(task["out"])
    tokenizer.save_pretrained(task["out"])
    print(json.dumps({"folder": task["out"], "seconds": time.perf_counter() - began}), flush=True)


def _collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return prompts padded on the left and, behind them, completions padded on the right."""
    longest = max(len(row["prompt"]) for row in rows)
    shape = (len(rows), longest + max(len(row["completion"]) for row in rows))
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, _IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for place, row in enumerate(rows):
        begin, end = longest - len(row["prompt"]), longest + len(row["completion"])
        input_ids[place, begin:end] = torch.tensor([*row["prompt"], *row["completion"]])
        labels[place, longest:end] = input_ids[place, longest:end]
        attention_mask[place, begin:end] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "prompts": input_ids[:, :longest],
        "prompt_attention_mask": attention_mask[:, :longest],
    }


if __name__ == "__main__":
    main()
