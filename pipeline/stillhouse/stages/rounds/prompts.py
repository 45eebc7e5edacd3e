"""The prompts of a round: some of the training split, other ones in every round until all had their turn."""

from __future__ import annotations

from itertools import islice

import numpy as np

from stillhouse.errors import PromptError
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Prompt

_PASS = 0x70617373  # separates the random order of prompts from other uses of the recipe's seed


def prompts_of_round(recipe: Recipe, number: int, count: int) -> list[Prompt]:
    """Return up to `count` prompts of the training split for a round, from 1; the source is read as it is now.

    Raises:
        PromptError: the prompts cannot be read, or all are held out.
    """
    total = sum(1 for _ in _training_prompts(recipe))
    if total == 0:
        raise PromptError(
            "all prompts are held out, so the student has none to answer",
            setting="prompts.holdout",
            value=recipe.prompts.holdout,
            fix="set it lower, or give more prompts",
        )
    count = min(count, total)
    first = (number - 1) * count
    chosen: list[int] = []
    while len(chosen) < count:
        turn, place = divmod(first + len(chosen), total)
        order = np.random.default_rng([recipe.seed, _PASS, turn]).permutation(total)
        chosen += order[place : place + count - len(chosen)].tolist()
    wanted = set(chosen)
    unique = {prompt.id: prompt for row, prompt in enumerate(_training_prompts(recipe)) if row in wanted}
    return list(islice(unique.values(), count))


def _training_prompts(recipe: Recipe):  # type: ignore[no-untyped-def]
    for prompt in read_prompts(recipe.prompts):
        if split_of(prompt, recipe.prompts.holdout) == "train":
            yield prompt
