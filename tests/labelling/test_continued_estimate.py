"""What a plan counts as answered, where the teacher continues an assistant's turn."""

import asyncio
import json
from pathlib import Path
from typing import Any

from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.recipe.recipe import Recipe, recipe_from
from tests.conftest import MakeRecipe


def continuing(make: MakeRecipe, tmp_path: Path, *words: str) -> Recipe:
    """A recipe whose prompts end with the beginning of the answer."""
    file = tmp_path / "begun.jsonl"
    turns = [
        [{"role": "user", "content": f"Explain {word}."}, {"role": "assistant", "content": f"A {word} is"}]
        for word in words
    ]
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    raw: dict[str, Any] = make().model_dump(mode="json", by_alias=True)
    raw["prompts"] = {"source": str(file), "last_turn": "continue", "holdout": 0}
    return recipe_from(raw | {"student": None}, "test")


def test_answered_turns_are_not_counted_as_to_be_sent(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    asyncio.run(label(continuing(tiny_recipe, tmp_path, "kettle", "tram")))
    estimate = estimate_labelling(continuing(tiny_recipe, tmp_path, "kettle", "tram", "sofa"))
    assert (estimate.answered, estimate.to_send) == (2, 1)
