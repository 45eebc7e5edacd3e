"""Small datasets with ragged labels, written as others are: one row group for each count of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.dataset import writer
from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import (
    Completion,
    EncodingName,
    Message,
    Prompt,
    SampledLabels,
    SoftLabels,
    TeacherIdentity,
    TokenTrace,
)

VOCABULARY = 200


def completion(number: int, soft: EncodingName | None, text: str = "an answer") -> Completion:
    """A completion of some random tokens, the same for the same number."""
    random = np.random.default_rng(number)
    time = int(random.integers(1, 12))
    trace = None
    if soft is not None:
        trace = TokenTrace(
            prompt_token_ids=random.integers(0, VOCABULARY, int(random.integers(1, 9))).astype(np.int32),
            completion_token_ids=random.integers(0, VOCABULARY, time).astype(np.int32),
            completion_logprobs=-random.random(time).astype(np.float32),
            soft=_top_k(random, time, k=int(random.integers(2, 6))) if soft == "top-k" else _sampled(random, time),
        )
    return Completion(
        id=f"row-{number}",
        prompt=Prompt((Message("user", f"question {number}"),)),
        sample=0,
        text=text,
        finish_reason="stop",
        prompt_tokens=None,
        completion_tokens=time,
        teacher="random",
        created_at="2026-01-01T00:00:00+00:00",
        trace=trace,
    )


def without_labels(whole: Completion, *, tokens: bool) -> Completion:
    """The same completion without its soft labels, or without its tokens too."""
    assert whole.trace is not None
    return replace(whole, trace=replace(whole.trace, soft=None) if tokens else None)


def write(
    root: Path, groups: Sequence[Sequence[Completion]], soft: EncodingName | None, patch: pytest.MonkeyPatch
) -> Dataset:
    """A dataset of a train split, with one row group for each of `groups`."""
    settings = SoftSettings(encoding=soft) if soft else None
    teacher = TeacherIdentity("transformers", "random", vocabulary_size=VOCABULARY)
    schema = completion_schema(soft=soft)
    patch.setattr(writer, "_SHARD_ROWS", 1)
    origin = Origin(made_by="import", how="random rows", teacher=teacher, soft=settings)
    with new_version(root, "random", origin) as version:
        for group in groups:
            version.add("train", record_batch([completion_row(one, soft=soft) for one in group], schema))
    return version.dataset


def numbered(sizes: Sequence[int], soft: EncodingName | None, text: str = "an answer") -> list[list[Completion]]:
    """Groups of completions of these sizes, numbered through from 0."""
    ends = np.cumsum(sizes)
    return [[completion(n, soft, text) for n in range(end - size, end)] for size, end in zip(sizes, ends, strict=True)]


def _top_k(random: np.random.Generator, time: int, k: int) -> SoftLabels:
    ids = np.stack([random.choice(VOCABULARY, k, replace=False) for _ in range(time)]).astype(np.int32)
    probabilities = np.sort(random.dirichlet(np.ones(k + 1), time), axis=1)[:, ::-1]
    return SoftLabels(
        ids, np.log(probabilities[:, :k]).astype(np.float16), np.log(probabilities[:, k]).astype(np.float32)
    )


def _sampled(random: np.random.Generator, time: int) -> SampledLabels:
    drawn = [np.unique(random.zipf(1.5, 20) % VOCABULARY, return_counts=True) for _ in range(time)]
    return SampledLabels(
        token_ids=np.concatenate([ids for ids, _ in drawn]).astype(np.int32),
        counts=np.concatenate([counts for _, counts in drawn]).astype(np.uint16),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in drawn)]).astype(np.int64),
    )
