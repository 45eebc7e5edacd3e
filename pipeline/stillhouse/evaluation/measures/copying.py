"""Which answers are, word for word, a training answer to another prompt.

A student that learnt its training rows by heart answers a new prompt with the answer to an old one. Case and white space
are normalised. An answer of less than `COPYABLE_WORDS` (8) words is never a copy, so a classifier's labels are none. The
training rows are read once and not held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stillhouse.dataset.store import Dataset
from stillhouse.records import Row
from stillhouse.text import bare_words

COPYABLE_WORDS = 8


def find_copies(
    answers: Sequence[Sequence[str]], prompt_ids: Sequence[str], training: Iterable[tuple[str, str]]
) -> list[list[bool]]:
    """Of each model's answers, one to each of `prompt_ids`, whether it is a copy.

    `training` is (prompt id, text) of every training answer.
    """
    wanted = {normalised(text) for own in answers for text in own if len(bare_words(text)) >= COPYABLE_WORDS}
    sources: defaultdict[str, set[str]] = defaultdict(
        set
    )  # the prompts whose answer it is: two tell "another" from "own"
    for prompt_id, text in training if wanted else ():
        plain = normalised(text)
        if plain in wanted and len(sources[plain]) < 2:
            sources[plain].add(prompt_id)
    return [
        [bool(sources.get(normalised(text), set()) - {own}) for text, own in zip(written, prompt_ids, strict=True)]
        for written in answers
    ]


def normalised(text: str) -> str:
    """A text without case, its white space collapsed."""
    return " ".join(text.casefold().split())


def training_answers(datasets: Iterable[Dataset]) -> Iterator[tuple[str, str]]:
    """(prompt id, text) of every completion and every reference of the training splits; no other column is read."""
    for dataset in datasets:
        for entry in dataset.files("train"):
            with dataset.open(entry) as parquet:
                for batch in parquet.iter_batches(columns=["prompt_id", "completion", "reference"]):
                    yield from (pair for row in batch.to_pylist() for pair in _answers_of(row))


def _answers_of(row: Row) -> Iterator[tuple[str, str]]:
    yield row["prompt_id"], "".join(message["content"] for message in row["completion"])
    if row["reference"] and row["reference"].strip():
        yield row["prompt_id"], row["reference"]
