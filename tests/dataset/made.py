"""Dataset versions out of nothing: what tests of the catalog need is rows and a manifest, not a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.recipe.label import SamplingSettings, SoftSettings, encoding_of
from stillhouse.records import (
    Completion,
    Message,
    Prompt,
    SampledLabels,
    SoftLabels,
    Split,
    TeacherIdentity,
    TokenTrace,
    content_hash,
)

TEACHER = TeacherIdentity(
    kind="scripted", model="teacher-a", revision="main", tokenizer_sha256="a" * 64, vocabulary_size=64
)
TOP_K = SoftSettings(encoding="top-k", k=4)
SAMPLED = SoftSettings(encoding="sampled", draws=8)


def completion(word: str, tokens: int = 5, *, soft: SoftSettings | None = None, **changes: Any) -> Completion:
    """An answer to the prompt `word`; its id is that of its text, unless told otherwise."""
    made = Completion(
        id=content_hash([word, changes.get("sample", 0)]),
        prompt=Prompt((Message("system", "Be short."), Message("user", word)), f"about {word}"),
        sample=0,
        text=f"A {word} is a thing.",
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=tokens,
        teacher="teacher-a",
        created_at="2026-11-01T00:00:00+00:00",
        cost_usd=0.001,
        trace=trace(tokens, soft) if soft else None,
    )
    return replace(made, **changes)


def trace(tokens: int, soft: SoftSettings) -> TokenTrace:
    """Tokens of which each is the most likely of four at 1/2, 1/4, 1/8, 1/16, or drawn 4, 2, 1 and 1 times."""
    ids = np.array([[place % 60, place % 60 + 1, place % 60 + 2, place % 60 + 3] for place in range(tokens)], np.int32)
    labels: SoftLabels | SampledLabels
    if soft.encoding == "top-k":
        logprobs = np.log(np.tile([0.5, 0.25, 0.125, 0.0625], (tokens, 1))).astype(np.float16)
        labels = SoftLabels(ids, logprobs, np.full(tokens, np.log(0.0625), np.float32))
    else:
        counts = np.tile(np.array([4, 2, 1, 1], np.uint16), tokens)
        labels = SampledLabels(ids.reshape(-1), counts, np.arange(tokens + 1, dtype=np.int64) * 4)
    return TokenTrace(np.arange(3, dtype=np.int32), ids[:, 0], np.full(tokens, np.log(0.5), np.float32), labels)


def make_dataset(
    root: Path,
    name: str,
    train: Iterable[Completion],
    validation: Iterable[Completion] = (),
    *,
    soft: SoftSettings | None = None,
    teacher: TeacherIdentity = TEACHER,
    parents: Sequence[str] = (),
    licence: str | None = None,
) -> Dataset:
    """The next version of `name`, of these rows."""
    origin = Origin(
        made_by="import",
        how="rows.jsonl",
        teacher=teacher,
        parents=tuple(parents),
        soft=soft,
        mode="generate",
        sampling=SamplingSettings(),
        licence=licence,
    )
    splits: list[tuple[Split, Iterable[Completion]]] = [("train", train), ("validation", validation)]
    encoding = encoding_of(soft)
    with new_version(root, name, origin) as version:
        for split, rows in splits:
            made = [completion_row(row, soft=encoding) for row in rows]
            version.add(split, record_batch(made, completion_schema(soft=encoding)))
    return version.dataset


def words_of(dataset: Dataset, split: Split) -> list[str]:
    """What the users of a split asked, in order."""
    return [turns[-1]["content"] for batch in dataset.batches(split) for turns in batch.column("prompt").to_pylist()]
