"""What an engineer would try first: TF-IDF of words and letters, and logistic regression by scikit-learn.

    python -m benchmarks.sections_baseline RECIPE DATASET REFERENCES     # whether each held-out prompt is right, as JSON

It learns from the recipe's references, and from the teacher's answers in the dataset. The prompts are in the order of
benchmarks.answers. `seconds` are those of learning and answering, each way.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from stillhouse.dataset.store import open_dataset
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.load import load_recipe
from stillhouse.records import Prompt


def right(texts: Sequence[str], sections: Sequence[str], held_out: Sequence[Prompt]) -> tuple[list[bool], float]:
    """Learn sections from texts; return whether each held-out one is right, and the seconds that it took."""
    began = time.perf_counter()
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    model = make_pipeline(features, LogisticRegression(C=10.0, max_iter=2000))
    model.fit(texts, sections)
    said = model.predict([one.text for one in held_out])
    found = [one == prompt.reference for one, prompt in zip(said, held_out, strict=True)]
    return found, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="A bag of words, from references and from a teacher's answers.")
    parser.add_argument("recipe")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("references", type=int)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe to change")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, [*given.set, f"references.limit={given.references}"])
    prompts = list(read_prompts(recipe.prompts))
    held_out = [one for one in prompts if split_of(one, recipe.prompts.holdout) == "validation"]
    known = [
        one
        for one in read_prompts(recipe.gold_prompts)
        if split_of(one, recipe.prompts.holdout) == "train" and one.reference
    ]
    rows = list(open_dataset(given.dataset).rows("train"))
    answered = [(row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in rows]
    ways = {
        "references": ([one.text for one in known], [one.reference or "" for one in known]),
        "teacher's answers": ([text for text, _ in answered], [answer for _, answer in answered]),
    }
    told = {}
    for name, (texts, sections) in ways.items():
        found, seconds = right(texts, sections, held_out)
        told[name] = {"right": found, "seconds": seconds, "rows": len(texts)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
