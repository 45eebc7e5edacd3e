"""Soft labels to try the encodings with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from stillhouse.records import Completion, Message, Prompt, SampledLabels, SoftLabels, TokenTrace

HIGHEST = 2**20 - 1  # a token id that needs 20 bits


def completion(soft: SoftLabels | SampledLabels | None, name: str = "k") -> Completion:
    """A completion with these labels, or one without tokens at all."""
    trace = None
    if soft is not None:
        ids = np.arange(len(soft), dtype=np.int32)
        trace = TokenTrace(np.array([1, HIGHEST], np.int32), ids, -ids.astype(np.float32), soft)
    prompt = Prompt((Message("user", "Why?"),))
    return Completion(name, prompt, 0, "An answer.", "stop", 2, 3, "t", "2026-01-01T00:00:00+00:00", None, trace)


def top_k_labels(generator: np.random.Generator, time: int, k: int) -> SoftLabels:
    """Random distributions over a vocabulary of 2^20, those with next to no mass included."""
    logits = generator.standard_normal((time, k + 1)) * generator.choice([0.1, 3.0, 30.0])
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    listed = -np.sort(-logprobs[:, :k], axis=1)
    ids = (generator.integers(0, HIGHEST // k, (time, 1)) + np.arange(k) * (HIGHEST // k))[
        :, ::-1
    ] + 1  # up to the highest
    return SoftLabels(ids.astype(np.int32), listed.astype(np.float16), logprobs[:, k].astype(np.float32))


def draws(generator: np.random.Generator, time: int, count: int) -> npt.NDArray[np.int64]:
    """(time, count) token ids, few of them distinct where the power is high."""
    places = generator.random((time, count)) ** generator.choice([1.0, 8.0, 40.0])
    return (places * (HIGHEST + 1)).astype(np.int64)


SEEDS = st.integers(0, 2**32 - 1)
