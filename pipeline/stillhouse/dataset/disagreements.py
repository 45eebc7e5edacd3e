"""Find the prompts that several versions answer differently, before a merge; a preferred version can settle them.

    >>> len(find_disagreements([dataset, dataset]).prompts)
    0

Several answers to a prompt within one version are samples, not a difference. Two versions differ on a prompt when each has
an answer that the other lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.dataset.columns import text_of_turns
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.records import SPLITS, Split
from stillhouse.text import short_quote

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class Example:
    """One prompt, with one answer from each version that has an answer not shared by all."""

    prompt: str
    answers: Mapping[str, str]  # version -> answer

    def __str__(self) -> str:
        answers = ", ".join(f"{label} has {_short(answer)}" for label, answer in self.answers.items())
        return f"of {_short(self.prompt)} {answers}"


@dataclass(frozen=True)
class Disagreements:
    """The prompts that merged versions answer differently."""

    prompts: frozenset[bytes] = frozenset()  # by `hash_text`
    examples: tuple[Example, ...] = ()
    # prompt -> indexes of the versions that answer it, for prompts whose sets of answers are not all equal
    unequal: Mapping[bytes, frozenset[int]] = field(default_factory=dict)

    def takes_rows_of(self, prompt: bytes, index: int, preferred: int | None) -> bool:
        """Whether to take a version's rows of a prompt: yes, unless the preferred version answers it differently."""
        return preferred is None or index == preferred or preferred not in self.unequal.get(prompt, ())

    def count_settled(self, preferred: int | None) -> int:
        """Return how many of the prompts the preferred version answers."""
        return sum(preferred in self.unequal[prompt] for prompt in self.prompts)


def find_disagreements(datasets: Sequence[Dataset]) -> Disagreements:
    """Find the prompts that these versions answer differently; only answers to shared prompts are read."""
    first: dict[bytes, int] = {}
    shared: set[bytes] = set()
    for index, dataset in enumerate(datasets):
        for (prompt,) in columns(dataset, "prompt_id"):
            if first.setdefault(hash_text(prompt), index) != index:
                shared.add(hash_text(prompt))
    answers: dict[bytes, dict[int, set[bytes]]] = {}
    for index, prompt, text in _answers(datasets, shared):
        answers.setdefault(prompt, {}).setdefault(index, set()).add(hash_text(text))
    unequal = {
        prompt: frozenset(by_version)
        for prompt, by_version in answers.items()
        if len({frozenset(one) for one in by_version.values()}) > 1
    }
    prompts = [prompt for prompt in unequal if _every_version_lacks_one(answers[prompt])]
    examples = _examples(datasets, {prompt: answers[prompt] for prompt in prompts[:_EXAMPLES]})
    return Disagreements(frozenset(prompts), tuple(examples), unequal)


def index_of_preferred(datasets: Sequence[Dataset], prefer: str) -> int:
    """Return the index of the version that `prefer` names, as name, name/v002, name@v002 or its folder.

    Raises:
        UsageError: no version or more than one version has this name.
    """
    wanted = prefer.rstrip("/").replace("@", "/")
    labels = [dataset.manifest.label for dataset in datasets]
    found = [
        index
        for index, dataset in enumerate(datasets)
        if wanted in {dataset.manifest.label, dataset.manifest.name, str(dataset.folder)}
    ]
    if len(found) != 1:
        problem = "several merged versions have this name" if found else "none of the merged versions has this name"
        raise UsageError(problem, setting="--prefer", value=prefer, fix=f"use one of {', '.join(labels)}")
    return found[0]


def columns(dataset: Dataset, *names: str, splits: Sequence[Split] = SPLITS) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns, row by row."""
    for entry in dataset.files(*splits):
        with dataset.open(entry) as parquet:
            for batch in parquet.iter_batches(columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def hash_text(text: str) -> bytes:
    """Return a 16-byte hash of a text (an id or an answer)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --------------------------------------------------------------------------------------------------------------- helpers


def _every_version_lacks_one(by_version: Mapping[int, set[bytes]]) -> bool:
    """Whether every version lacks an answer that another has."""
    every = set[bytes]().union(*by_version.values())
    return all(len(answers) < len(every) for answers in by_version.values())


def _answers(datasets: Sequence[Dataset], prompts: set[bytes]) -> Iterator[tuple[int, bytes, str]]:
    """Yield (version index, prompt key, answer) for every row of the given prompts."""
    if not prompts:
        return
    for index, dataset in enumerate(datasets):
        for prompt, turns in columns(dataset, "prompt_id", "completion"):
            if hash_text(prompt) in prompts:
                yield index, hash_text(prompt), text_of_turns(turns)


def _examples(datasets: Sequence[Dataset], wanted: Mapping[bytes, Mapping[int, set[bytes]]]) -> Iterator[Example]:
    unshared = {
        (prompt, index): answers - set[bytes].intersection(*by_version.values())
        for prompt, by_version in wanted.items()
        for index, answers in by_version.items()
    }
    prompts: dict[bytes, str] = {}
    texts: dict[bytes, dict[str, str]] = {prompt: {} for prompt in wanted}
    for index, dataset in enumerate(datasets if wanted else ()):
        for prompt, turns, answer in columns(dataset, "prompt_id", "prompt", "completion"):
            key = hash_text(prompt)
            if key in wanted and hash_text(text_of_turns(answer)) in unshared[key, index]:
                prompts.setdefault(key, "\n".join(turn["content"] for turn in turns if turn["role"] != "system"))
                texts[key].setdefault(dataset.manifest.label, text_of_turns(answer))
    for key in wanted:
        yield Example(prompts[key], texts[key])


def _short(text: str) -> str:
    return short_quote(text, _EXAMPLE_CHARACTERS)
