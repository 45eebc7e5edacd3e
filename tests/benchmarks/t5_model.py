"""What one model of t5.py says of every held-out word, and how fast on one core.

    python -m tests.benchmarks.t5_model FOLDER

A process of its own. The words are read in their own order, 64 at a time; the better of two rounds counts, since whatever
else runs on the machine only makes it slower. A JSON object comes out: words a second, and whether each word is right.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from pipeline.config import load_recipe
from pipeline.generation import generate
from pipeline.language_model import decode_completion, encode_prompt, load_language_model
from pipeline.prompts import read_prompts, split_of
from tests.benchmarks.t5 import RECIPE

BATCH = 64
ROUNDS = 2


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE)
    held_out = [one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "validation"]
    lm = load_language_model(folder, device="cpu")
    prompts = [encode_prompt(lm.tokenizer, one.messages) for one in held_out]
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    longest = recipe.label.sampling.max_tokens
    generate(lm, batches[0], max_tokens=longest)  # warms up
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        said = [tokens for batch in batches for tokens in generate(lm, batch, max_tokens=longest)]
        seconds.append(time.perf_counter() - began)
    right = [decode_completion(lm, tokens) == one.reference for tokens, one in zip(said, held_out, strict=True)]
    print(json.dumps({"words_per_second": len(prompts) / min(seconds), "right": right}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
