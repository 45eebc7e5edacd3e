"""Greedy answers of models to every held-out prompt of a recipe, and their speed.

    python -m benchmarks.answers RECIPE FOLDER...               # whether each answer is right
    python -m benchmarks.answers RECIPE --rounds 5 FOLDER...    # answers per second

It runs as a separate process, on one core unless --cores says otherwise. The prompts are read in order, in batches of 64.
To measure speed, the models alternate over the rounds, and each round starts with a different one, so that other load on
the machine slows all alike. It prints a JSON object: under `models`, for each folder, whether each answer is right, or the
answers per second of every round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.shared import in_turn
from stillhouse.models.generate import generate
from stillhouse.models.load import decode_completion, encode_prompt, load_language_model
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.load import load_recipe
from stillhouse.records import Prompt

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="What models answer to every held-out prompt, or how fast.")
    parser.add_argument("recipe")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, help="measure their speed, so many times")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--limit", type=int, help="held-out prompts; all, if it is not given")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe to change")
    given = parser.parse_args()
    torch.set_num_threads(given.cores)
    recipe = load_recipe(given.recipe, given.set)
    held_out = [one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "validation"]
    held_out = held_out[: given.limit]
    models = [Answering(folder, held_out, recipe.label.sampling.max_tokens) for folder in given.folders]
    found = speeds(models, given.rounds) if given.rounds else [model.right() for model in models]
    print(json.dumps({"models": found}))


class Answering:
    """One model and the held-out prompts that it answers."""

    def __init__(self, folder: Path, held_out: Sequence[Prompt], longest: int) -> None:
        self._lm = load_language_model(folder, device="cpu")
        self._held_out = held_out
        self._longest = longest
        prompts = [encode_prompt(self._lm.tokenizer, one.messages) for one in held_out]
        self._batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]

    def right(self) -> list[bool]:
        """Return whether the answer to each prompt is right."""
        said = [decode_completion(self._lm, tokens) for batch in self._batches for tokens in self._answers(batch)]
        return [one == prompt.reference for one, prompt in zip(said, self._held_out, strict=True)]

    def warm_up(self) -> None:
        self._answers(self._batches[0])

    def answers_a_second(self) -> float:
        began = time.perf_counter()
        for batch in self._batches:
            self._answers(batch)
        return len(self._held_out) / (time.perf_counter() - began)

    def _answers(self, batch: list[list[int]]) -> list[list[int]]:
        return generate(self._lm, batch, max_tokens=self._longest)


def speeds(models: Sequence[Answering], rounds: int) -> list[list[float]]:
    """Return the answers per second of each model in each round."""
    for model in models:
        model.warm_up()
    found: list[list[float]] = [[] for _ in models]
    for number in range(rounds):
        for place, model in in_turn(enumerate(models), number):
            found[place].append(model.answers_a_second())
    return found


if __name__ == "__main__":
    main()
