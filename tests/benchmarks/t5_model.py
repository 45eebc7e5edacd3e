"""What some models of t5.py say of every held-out word, and how fast on one core.

    python -m tests.benchmarks.t5_model FOLDER...

A process of its own. The words are read in their own order, 64 at a time; of the first model, whose shape the others have,
twice: the better round counts, since whatever else runs on the machine only makes it slower. A JSON object comes out: under
`models`, of each folder the words a second, and whether each word is right.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import load_recipe
from pipeline.generation import generate
from pipeline.language_model import decode_completion, encode_prompt, load_language_model
from pipeline.prompts import read_prompts, split_of
from pipeline.records import Prompt
from tests.benchmarks.t5 import RECIPE

BATCH = 64
ROUNDS = 2  # of the first model


def main(folders: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE)
    held_out = [one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "validation"]
    longest = recipe.label.sampling.max_tokens
    rounds = [ROUNDS] + [1] * (len(folders) - 1)
    measured = [measure(folder, held_out, longest, times) for folder, times in zip(folders, rounds, strict=True)]
    print(json.dumps({"models": measured}))


def measure(folder: Path, held_out: Sequence[Prompt], longest: int, rounds: int) -> dict[str, Any]:
    """`words_per_second`, and `right`: whether each word is."""
    lm = load_language_model(folder, device="cpu")
    prompts = [encode_prompt(lm.tokenizer, one.messages) for one in held_out]
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    generate(lm, batches[0], max_tokens=longest)  # warms up
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        said = [tokens for batch in batches for tokens in generate(lm, batch, max_tokens=longest)]
        seconds.append(time.perf_counter() - began)
    right = [decode_completion(lm, tokens) == one.reference for tokens, one in zip(said, held_out, strict=True)]
    return {"words_per_second": len(prompts) / min(seconds), "right": right}


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
