"""Collate examples into training batches: padded tensors, built without a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stillhouse.dataset.encodings import PackedLabels, pad_entries
from stillhouse.models.layout import IGNORED, TokenBatch, right_padded
from stillhouse.student.data.rows import Example
from stillhouse.student.losses.base import PAD_TOKEN_ID, SparseLabels, WrittenTokens

Batch = dict[str, Tensor]


def collator(
    pad_id: int, start_id: int | None = None, *, pack_to: int | None = None
) -> Callable[[Sequence[Example]], Batch]:
    """Return a collate function for a causal model or, with its decoder start token `start_id`, an encoder-decoder.

    Keys: `input_ids`, `attention_mask`, `labels`, for an encoder-decoder also `decoder_input_ids`, (batch, time) int64, as
    in `layout.TokenBatch`. For soft labels, in the order of `layout.completion_logits`: `soft_token_ids` int32 and
    `soft_logprobs` float32 (completion tokens, k), and `soft_tail_logprob` float32 (completion tokens,). k is the number of
    entries at the position that has the most; positions with fewer are padded with `PAD_TOKEN_ID` and -inf. If the student
    wrote an example, `written_logprobs` and `written_advantages`, (completion tokens,) float32, with 0 for other examples.

    With `pack_to`, the maximum tokens of a sequence, several examples share a sequence, in few sequences (first fit), and
    `position_ids` (batch, time) int64, which restart at 0 with each example, replace `attention_mask`. A packed batch has
    the same loss and gradients as an unpacked one; packing.py checks which models keep its examples apart.
    """
    return partial(_collate, pad_id, start_id, pack_to)  # can be pickled, for worker processes that are not forked


def _collate(pad_id: int, start_id: int | None, pack_to: int | None, examples: Sequence[Example]) -> Batch:
    if not examples:  # a process without a share of a step still takes part in it
        empty = {
            "input_ids": torch.tensor([[pad_id]]),
            "attention_mask": torch.tensor([[1]]),
            "labels": torch.tensor([[IGNORED]]),
        }
        return empty if start_id is None else empty | {"decoder_input_ids": torch.tensor([[start_id]])}
    if start_id is not None:
        batch = _encoder_and_decoder_tokens(examples, pad_id, start_id)
        return batch | _labels(examples)
    if pack_to is None:
        sequences = [[example] for example in examples]
    else:
        placed = pack_first_fit([len(example) for example in examples], pack_to)
        sequences = [[examples[index] for index in sequence] for sequence in placed]
    batch = _tokens(sequences, pad_id, packed=pack_to is not None)
    return batch | _labels([example for sequence in sequences for example in sequence])


def pack_first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Assign rows to sequences: first fit, longest first (at most 11/9 of the minimum number of sequences, plus one).

    Args:
        lengths: tokens of each row.
        width: maximum tokens of a sequence; a longer row has a sequence to itself.

    Returns:
        Indices into `lengths`, each once.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        index = next((index for index, free in enumerate(room) if lengths[row] <= free), len(sequences))
        if index == len(sequences):
            sequences.append([])
            room.append(width)
        sequences[index].append(row)
        room[index] -= lengths[row]
    return sequences


def tokens_of(batch: Batch) -> TokenBatch:
    """Return the token part of a collated batch that is not packed."""
    return TokenBatch(batch["input_ids"], batch["attention_mask"], batch["labels"], batch.get("decoder_input_ids"))


def soft_labels_of(batch: Batch) -> SparseLabels | None:
    """Return the soft labels of a collated batch in the order of `layout.completion_logits`; None if it has only text."""
    if "soft_token_ids" not in batch:
        return None
    return SparseLabels(
        token_ids=batch["soft_token_ids"].long(),
        logprobs=batch["soft_logprobs"],
        tail_logprob=batch["soft_tail_logprob"],
        written=WrittenTokens(batch["written_logprobs"], batch["written_advantages"])
        if "written_logprobs" in batch
        else None,
    )


def _tokens(sequences: Sequence[Sequence[Example]], pad_id: int, *, packed: bool) -> Batch:
    shape = (len(sequences), max(sum(map(len, sequence)) for sequence in sequences))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    layout = np.zeros(shape, dtype=np.int64)  # the mask, or positions: padding at position 0 is a sequence of one token
    for row, sequence in enumerate(sequences):
        begin = 0
        for example in sequence:
            answer, end = begin + len(example.prompt), begin + len(example)
            input_ids[row, begin:answer] = example.prompt
            input_ids[row, answer:end] = labels[row, answer:end] = example.completion
            layout[row, begin:end] = np.arange(end - begin) if packed else 1
            begin = end
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids" if packed else "attention_mask": torch.from_numpy(layout),
        "labels": torch.from_numpy(labels),
    }


def _encoder_and_decoder_tokens(examples: Sequence[Example], pad_id: int, start_id: int) -> Batch:
    prompts, completions = [one.prompt for one in examples], [one.completion for one in examples]
    input_ids, attention_mask = right_padded(prompts, pad_id)
    labels, _ = right_padded(completions, IGNORED)
    start = np.array([start_id], np.int32)
    decoder_input_ids, _ = right_padded([np.concatenate([start, ids[:-1]]) for ids in completions], pad_id)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "decoder_input_ids": decoder_input_ids,
    }


def _labels(examples: Sequence[Example]) -> Batch:
    """Return the labels of examples in this order; an empty batch if they have none."""
    labels = [example.soft for example in examples if example.soft is not None]
    if not labels:
        return {}
    batch = _padded_labels(labels)
    if any(example.written is not None for example in examples):
        for name in ("logprobs", "advantages"):
            zeros = (np.zeros(len(example.completion), dtype=np.float32) for example in examples)
            parts = [
                zero if example.written is None else getattr(example.written, name)
                for example, zero in zip(examples, zeros, strict=True)
            ]
            batch[f"written_{name}"] = torch.from_numpy(np.concatenate(parts))
    return batch


def _padded_labels(labels: Sequence[PackedLabels]) -> Batch:
    token_ids = np.concatenate([one.token_ids for one in labels])  # (entries,)
    logprobs = np.concatenate([one.logprobs for one in labels])
    entries = np.concatenate([np.diff(one.offsets) for one in labels])  # (positions,)
    padded = pad_entries(token_ids, logprobs, entries, PAD_TOKEN_ID)
    return {
        "soft_token_ids": torch.from_numpy(padded.token_ids),
        "soft_logprobs": torch.from_numpy(padded.logprobs),
        "soft_tail_logprob": torch.from_numpy(np.concatenate([one.tail_logprob for one in labels])),
    }
