"""Whether a round is healthy: what the student wrote, and how near it is to its teacher on both texts.

    health = measure_round(recipe, files, load, scored, labelled, written)
    health.written.broken            # share of rollouts that repeat themselves or are empty

The figures describe the student that wrote the round's rollouts, before it learns from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from stillhouse.dataset.store import Dataset
from stillhouse.models.files import ModelFiles
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Split
from stillhouse.student.finished.rounds import RoundHealth, Written
from stillhouse.student.vocabulary_map import vocabulary_map_for
from stillhouse.text import repeats_itself

if TYPE_CHECKING:
    from stillhouse.models.load import LanguageModel
    from stillhouse.student.data.rows import Example

_MOST_ROWS = 32  # rows of each text that are measured
_COLLAPSED = 0.5  # share of broken rollouts above which a student has collapsed,
_WORSE = 0.2  # if the share is also this much higher than in the first round


def written_of(file: Path) -> Written:
    """Return the figures of a file of rollouts."""
    rows = pq.read_table(file, columns=["text", "token_ids", "finish_reason"]).to_pylist()
    texts = [row["text"] for row in rows]
    return Written(
        rollouts=len(rows),
        tokens=float(np.mean([len(row["token_ids"]) for row in rows])),
        repeats=float(np.mean([repeats_itself(text) for text in texts])),
        cut=float(np.mean([row["finish_reason"] == "length" for row in rows])),
        empty=float(np.mean([not text.strip() for text in texts])),
    )


def refuse_collapsed(number: int, written: Written, first: Written) -> None:
    """Refuse the rollouts of a student that has collapsed since the first round.

    Raises:
        StudentCollapsed: most of its rollouts repeat themselves or are empty.
    """
    if written.broken > _COLLAPSED and written.broken > first.broken + _WORSE:
        raise StudentCollapsed(
            f"round {number}: {written.broken:.0%} of what the student writes repeats itself or is empty "
            f"({first.broken:.0%} in the first round)"
        )


class StudentCollapsed(Exception):
    """The student of a round writes broken text; the rounds before it are kept."""


def measure_round(
    recipe: Recipe,
    files: ModelFiles,
    load: Callable[[], LanguageModel],
    scored: Dataset,
    labelled: Dataset,
    written: Written,
) -> RoundHealth:
    """Measure the student that wrote a round's rollouts on some of them and on held-out rows of the teacher's text.

    Args:
        recipe: the recipe, with `on_policy`.
        files: the student's.
        load: loads the student.
        scored: the round's rollouts with their scores.
        labelled: the teacher's own dataset.
        written: what the student wrote.
    """
    if scored.manifest.soft is None or scored.manifest.soft.encoding != "top-k":
        return RoundHealth(written=written)
    from stillhouse.evaluation.measures.own_text import measure_on

    lm = load()
    own = _some_rows(recipe, lm, files, scored, "train")
    soft = labelled.manifest.soft
    held_out = (
        _some_rows(recipe, lm, files, labelled, "validation") if soft is not None and soft.encoding == "top-k" else []
    )
    return RoundHealth(
        written=written,
        teacher_text=measure_on(lm, held_out) if held_out else None,
        own_text=measure_on(lm, own) if own else None,
    )


def _some_rows(
    recipe: Recipe, lm: LanguageModel, files: ModelFiles, dataset: Dataset, split: Split
) -> Sequence[Example]:
    """Return the first rows of a split."""
    from stillhouse.student.data.examples import Examples, open_rows

    assert recipe.student is not None
    vocabulary_map = vocabulary_map_for(files, dataset.manifest.teacher.tokenizer_sha256)
    rows = open_rows(dataset, split, lm, soft=True, by_text=False, vocabulary_map=vocabulary_map)
    examples = Examples(rows, recipe.student.max_length)
    return [examples[place] for place in range(min(len(examples), _MOST_ROWS))]
