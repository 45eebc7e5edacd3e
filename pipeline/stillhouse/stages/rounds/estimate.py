"""What the rounds of a recipe would cost, before anything is sent."""

from __future__ import annotations

from itertools import islice

from stillhouse.labelling.estimate import RoundsEstimate, seconds_at_limits
from stillhouse.labelling.tokens import likely_prompt_tokens, most_prompt_tokens
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.rounds.recipes import on_policy_of, scoring_label
from stillhouse.teachers.base import AnswerSettings, Request, open_teacher


def estimate_rounds(recipe: Recipe) -> RoundsEstimate | None:
    """Estimate the scoring of all rounds from the first training prompts; None if the recipe has no rounds.

    The teacher reads prompt and rollout and generates nothing. A rollout is expected to have half of `max_tokens`.
    """
    if recipe.on_policy is None:
        return None
    settings, label = on_policy_of(recipe), scoring_label(recipe)
    teacher = open_teacher(recipe.teacher, label, recipe.seed)
    answer_settings = AnswerSettings.from_label(teacher.identity, label)
    training = (one for one in read_prompts(recipe.prompts) if split_of(one, recipe.prompts.holdout) == "train")
    asked = [Request(prompt, 0, answer_settings) for prompt in islice(training, settings.prompts)]
    times = settings.rounds * settings.samples
    requests = len(asked) * times
    expected = sum(map(likely_prompt_tokens, asked)) * times + requests * settings.sampling.max_tokens // 2
    worst = sum(map(most_prompt_tokens, asked)) * times + requests * settings.sampling.max_tokens
    price = teacher.price
    return RoundsEstimate(
        rounds=settings.rounds,
        requests=requests,
        expected_tokens=expected,
        worst_tokens=worst,
        expected_usd=None if price is None else price.cost(expected, 0),
        worst_usd=None if price is None else price.max_cost(worst, 0),
        seconds_at_limits=seconds_at_limits(label, requests, expected),
    )
