"""From examples to training batches: padded tensors, laid out without a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.causal import IGNORED, TokenBatch
from pipeline.encodings import PackedLabels
from pipeline.student.losses.base import NO_TOKEN, SparseLabels
from pipeline.student.rows import Example

Batch = dict[str, Tensor]


def collator(pad_id: int) -> Callable[[Sequence[Example]], Batch]:
    """Lay examples out as one batch.

    Keys: `input_ids`, `attention_mask`, `labels` (batch, time) int64 as `causal.TokenBatch` has them. For soft labels, in
    the order of `causal.completion_logits`: `soft_token_ids` int32 and `soft_logprobs` float32 (completion tokens, k), and
    `soft_tail_logprob` float32 (completion tokens,). k is that of the position with the most entries; where another has
    fewer, the places behind them hold `NO_TOKEN` and -inf.
    """
    return partial(_collate, pad_id)  # which a worker process that is not forked can be handed


def _collate(pad_id: int, examples: Sequence[Example]) -> Batch:
    if not examples:  # a process that has no share of a step takes part in it all the same
        return {
            "input_ids": torch.tensor([[pad_id]]),
            "attention_mask": torch.tensor([[1]]),
            "labels": torch.tensor([[IGNORED]]),
        }
    batch = _padded_tokens(examples, pad_id)
    labels = [example.soft for example in examples if example.soft is not None]
    return batch | _padded_labels(labels) if labels else batch


def tokens_of(batch: Batch) -> TokenBatch:
    """The token part of a collated batch."""
    return TokenBatch(batch["input_ids"], batch["attention_mask"], batch["labels"])


def soft_labels_of(batch: Batch) -> SparseLabels | None:
    """The soft labels of a collated batch in the order of `causal.completion_logits`, or None for text alone."""
    if "soft_token_ids" not in batch:
        return None
    return SparseLabels(
        token_ids=batch["soft_token_ids"].long(),
        logprobs=batch["soft_logprobs"],
        tail_logprob=batch["soft_tail_logprob"],
    )


def _padded_tokens(examples: Sequence[Example], pad_id: int) -> Batch:
    shape = (len(examples), max(len(example) for example in examples))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, example in enumerate(examples):
        begin, end = len(example.prompt), len(example)
        input_ids[row, :begin] = example.prompt
        input_ids[row, begin:end] = labels[row, begin:end] = example.completion
        attention_mask[row, :end] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "labels": torch.from_numpy(labels),
    }


def _padded_labels(labels: Sequence[PackedLabels]) -> Batch:
    token_ids = np.concatenate([one.token_ids for one in labels])  # (entries,)
    logprobs = np.concatenate([one.logprobs for one in labels])
    entries = np.concatenate([np.diff(one.offsets) for one in labels])  # (positions,)
    shape = (len(entries), int(entries.max(initial=0)))
    if len(token_ids) == shape[0] * shape[1]:
        padded_ids, padded_logprobs = token_ids.reshape(shape), logprobs.reshape(shape)
    else:
        present = np.arange(shape[1], dtype=entries.dtype) < entries[:, None]  # (positions, width)
        padded_ids = np.full(shape, NO_TOKEN, dtype=np.int32)
        padded_logprobs = np.full(shape, -np.inf, dtype=np.float32)
        padded_ids[present] = token_ids
        padded_logprobs[present] = logprobs
    return {
        "soft_token_ids": torch.from_numpy(padded_ids),
        "soft_logprobs": torch.from_numpy(padded_logprobs),
        "soft_tail_logprob": torch.from_numpy(np.concatenate([one.tail_logprob for one in labels])),
    }
