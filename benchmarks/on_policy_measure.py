"""Measure students on held-out prompts, on the teacher's text and on their own, with the teacher's whole distributions.

    python -m benchmarks.on_policy_measure FOLDER HELD_OUT STUDENT [STUDENT ...]

FOLDER is that of `on_policy_ways.first_recipe`. Prints a JSON object: for each student, figures of each held-out prompt,
in the order of the prompts; the models run one after the other, in the same batches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_policy_ways import MAX_TOKENS, first_recipe
from stillhouse.dataset.columns import prompt_at
from stillhouse.evaluation.metrics.rouge import open_metric
from stillhouse.models.find import teacher_files
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import LanguageModel, decode_completion, encode_prompt, load_language_model
from stillhouse.records import Prompt
from stillhouse.stages.stages import recipe_dataset
from stillhouse.student.losses import forward_kl, reverse_kl
from stillhouse.text import repeats_itself

_BATCH = 20
_LONGER = 4 * MAX_TOKENS  # of the answers in which repetition is looked for


def divergences(
    student: LanguageModel, teacher: LanguageModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> list[tuple[float, float, int]]:
    """Return the sums of KL(teacher || student) and KL(student || teacher) over each completion, and its tokens."""
    sums = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        batch = make_token_batch(prompts[part], completions[part], student.pad_id)
        with torch.inference_mode():
            q, p = (completion_logits(lm.model, batch).log_softmax(dim=-1) for lm in (student, teacher))
        lengths = [len(one) for one in completions[part]]
        forward, reverse = (
            one.divergence(p, q).double().split(lengths) for one in (forward_kl, reverse_kl)
        )  # of each completion
        sums += [(float(f.sum()), float(r.sum()), len(f)) for f, r in zip(forward, reverse, strict=True)]
    return sums


def measured(
    lm: LanguageModel, teacher: LanguageModel, prompts: Sequence[Prompt], of_teacher: Sequence[list[int]]
) -> dict[str, Any]:
    """Return a student's figures, a list with one of each prompt."""
    ids = [encode_prompt(lm.tokenizer, prompt.messages) for prompt in prompts]
    sampled, greedy = [], []
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        seeds = list(range(start, start + len(part)))
        sampled += generate(lm, part, max_tokens=MAX_TOKENS, sampling=Sampling(1.0, 1.0, seeds))
        greedy += generate(lm, part, max_tokens=_LONGER)
    texts = [decode_completion(lm, one, prompt) for one, prompt in zip(greedy, prompts, strict=True)]
    rouge = open_metric({})
    return {
        "teacher_text": divergences(lm, teacher, ids, of_teacher),
        "own_text": divergences(lm, teacher, ids, sampled),
        "repeats": [repeats_itself(text) for text in texts],
        "cut": [one[-1] not in lm.end_ids for one in greedy],
        "rouge": [
            rouge.statistics(text, prompt.reference or "")[0] for text, prompt in zip(texts, prompts, strict=True)
        ],
        "texts": texts,
    }


def main() -> None:
    folder, count, *students = sys.argv[1:]
    recipe = first_recipe(Path(folder))
    dataset = recipe_dataset(recipe)
    rows = dataset.to_table("validation").slice(0, int(count))
    prompts = [prompt_at(rows, place) for place in range(len(rows))]
    of_teacher = rows["completion_token_ids"].to_pylist()
    teacher = load_language_model(teacher_files(recipe).folder)
    told = {student: measured(load_language_model(Path(student)), teacher, prompts, of_teacher) for student in students}
    told["teacher"] = measured(teacher, teacher, prompts, of_teacher)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
