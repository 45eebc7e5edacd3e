"""Find answers that are, word for word, a training answer to another prompt.

A student that memorised its training rows answers a new prompt with the answer to an old one. Case and white space are
normalised. An answer of fewer than `COPYABLE_WORDS` (8) words is never a copy, so a classifier's labels do not count. The
training rows are streamed once and not kept in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from stillhouse.dataset.columns import text_of_turns
from stillhouse.dataset.store import Dataset
from stillhouse.records import Row
from stillhouse.text import bare_words

COPYABLE_WORDS = 8


def find_copies(
    answers: Sequence[Sequence[str]], prompt_ids: Sequence[str], training: Iterable[tuple[str, str]]
) -> list[list[bool]]:
    """Return, for each model and each of its answers, whether the answer is a copy.

    Args:
        answers: each model's answers, one per prompt.
        prompt_ids: the prompts' ids.
        training: (prompt id, text) of every training answer.
    """
    wanted = {normalised(text) for own in answers for text in own if len(bare_words(text)) >= COPYABLE_WORDS}
    sources: defaultdict[str, set[str]] = defaultdict(
        set
    )  # up to two prompts with this answer: with two, at least one is another prompt
    for prompt_id, text in training if wanted else ():
        plain = normalised(text)
        if plain in wanted and len(sources[plain]) < 2:
            sources[plain].add(prompt_id)
    return [
        [bool(sources.get(normalised(text), set()) - {own}) for text, own in zip(written, prompt_ids, strict=True)]
        for written in answers
    ]


def normalised(text: str) -> str:
    """Return a text case-folded, its white space collapsed."""
    return " ".join(text.casefold().split())


def training_answers(datasets: Iterable[Dataset]) -> Iterator[tuple[str, str]]:
    """Yield (prompt id, text) of every completion and reference of the training splits; reads only these columns."""
    for dataset in datasets:
        for entry in dataset.files("train"):
            with dataset.open(entry) as parquet:
                for batch in parquet.iter_batches(columns=["prompt_id", "completion", "reference"]):
                    yield from (pair for row in batch.to_pylist() for pair in _answers_of(row))


def _answers_of(row: Row) -> Iterator[tuple[str, str]]:
    yield row["prompt_id"], text_of_turns(row["completion"])
    if row["reference"] and row["reference"].strip():
        yield row["prompt_id"], row["reference"]
