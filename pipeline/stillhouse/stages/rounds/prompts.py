"""The prompts of a round: some of the dataset's training split, other ones in every round until all had their turn.

They are those of the dataset and not of the source: a student with a part of the teacher's vocabulary has the tokens of
these prompts, and those that the filters rejected are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.records import Message, Prompt

_PASS = 0x70617373  # separates the random order of prompts from other uses of the recipe's seed


def prompts_of_round(labelled: Dataset, seed: int, number: int, count: int) -> list[Prompt]:
    """Return up to `count` training prompts of the dataset for a round, from 1.

    Raises:
        DatasetRefused: the dataset has no training row.
    """
    ids = dict.fromkeys(id_ for id_, _ in _rows(labelled, text=False))
    if not ids:
        raise DatasetRefused(
            f"dataset {labelled.manifest.label} has no training row, so the student has no prompt to answer",
            fix="label more prompts, or set a smaller prompts.holdout",
        )
    total = len(ids)
    count = min(count, total)
    first = (number - 1) * count
    chosen: list[int] = []
    while len(chosen) < count:
        turn, place = divmod(first + len(chosen), total)
        order = np.random.default_rng([seed, _PASS, turn]).permutation(total)
        chosen += order[place : place + count - len(chosen)].tolist()
    names = list(ids)
    wanted = {names[place] for place in chosen}
    found = {id_: prompt for id_, prompt in _rows(labelled) if id_ in wanted and prompt is not None}
    return list(found.values())


def _rows(labelled: Dataset, *, text: bool = True) -> Iterator[tuple[str, Prompt | None]]:
    """Yield the id and, with `text`, the prompt of every training row."""
    columns = ["prompt_id", *(["prompt", "reference"] if text else [])]
    for entry in labelled.manifest.files:
        if entry.kind != "train":
            continue
        with labelled.open(entry) as parquet:
            for batch in parquet.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    yield row["prompt_id"], _prompt(row) if text else None


def _prompt(row: dict[str, object]) -> Prompt:
    turns = row["prompt"]
    assert isinstance(turns, list)
    reference = row["reference"]
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    return Prompt(messages, reference if isinstance(reference, str) else None)
