"""The prompts of a round: some of the dataset's training split, other ones in every round until all had their turn.

They are those of the dataset and not of the source: a student with a part of the teacher's vocabulary has the tokens of
these prompts, and those that the filters rejected are left out. With `on_policy.prompts_from: newest` they are those of the
newest version when the round begins; the choice is then noted, so that an interrupted round keeps it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import DatasetRefused
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Message, Prompt
from stillhouse.stages.rounds.recipes import on_policy_of, round_folder
from stillhouse.storage.durable import write_atomically

_PASS = 0x70617373  # separates the random order of prompts from other uses of the recipe's seed
_NOTE = "prompts.json"  # in a folder of rollouts


def prompts_of_round(labelled: Dataset, seed: int, number: int, count: int) -> list[Prompt]:
    """Return up to `count` training prompts of the dataset for a round, from 1.

    Raises:
        DatasetRefused: the dataset has no training row.
    """
    names = _training_ids(labelled)
    count = min(count, len(names))
    waiting: deque[int] = deque()  # that have not had their turn in this pass
    passes = itertools.count()
    chosen: set[int] = set()
    for _ in range(number):
        chosen, again = set(), []
        while len(chosen) < count:
            if not waiting:
                waiting.extend(np.random.default_rng([seed, _PASS, next(passes)]).permutation(len(names)).tolist())
            place = waiting.popleft()
            if place in chosen:
                again.append(place)  # it has its turn of the new pass in the next round
            chosen.add(place)
        waiting.extendleft(reversed(again))
    return _prompts(labelled, {names[place] for place in chosen})


class _Note(BaseModel):
    """The prompts of a round, and the dataset version that has them."""

    model_config = ConfigDict(frozen=True)

    version: int
    prompt_ids: tuple[str, ...]


def newest_prompts_of_round(recipe: Recipe, number: int, folder: Path) -> list[Prompt]:
    """Return training prompts of the newest dataset version for a round, those of no earlier round first.

    Args:
        recipe: the recipe, with `on_policy`.
        number: of the round, from 1.
        folder: of the round's rollouts; the choice is noted there, and a later call returns the same prompts.

    Raises:
        DatasetRefused: the newest version has no training row.
    """
    file = folder / _NOTE
    if not file.is_file():
        newest = open_dataset(dataset_folder(recipe.dataset))
        earlier = [path for before in range(1, number) for path in round_folder(recipe, before).glob(f"*/{_NOTE}")]
        used = {id_ for path in earlier for id_ in _read_note(path).prompt_ids}
        names = _training_ids(newest)
        order = np.random.default_rng([recipe.seed, _PASS, number]).permutation(len(names))
        chosen = sorted((names[place] for place in order), key=lambda id_: id_ in used)[: on_policy_of(recipe).prompts]
        note = _Note(version=newest.manifest.version, prompt_ids=tuple(chosen))
        write_atomically(file, note.model_dump_json().encode())
    note = _read_note(file)
    return _prompts(open_dataset(dataset_folder(recipe.dataset), note.version), {*note.prompt_ids})


def _read_note(file: Path) -> _Note:
    return _Note.model_validate_json(file.read_bytes())


def _training_ids(labelled: Dataset) -> list[str]:
    """Return the ids of the training prompts, each once, in their order.

    Raises:
        DatasetRefused: there is none.
    """
    ids = dict.fromkeys(id_ for id_, _ in _rows(labelled, text=False))
    if not ids:
        raise DatasetRefused(
            f"dataset {labelled.manifest.label} has no training row, so the student has no prompt to answer",
            fix="label more prompts, or set a smaller prompts.holdout",
        )
    return list(ids)


def _prompts(labelled: Dataset, wanted: set[str]) -> list[Prompt]:
    """Return the training prompts with these ids, each once, in the order of the dataset."""
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
