"""The layout of prompts and completions as tensors, and the alignment of logits with completion tokens.

Teacher, student and evaluation all read the logits of a completion through `completion_logits`, so a label and the
student's prediction are at the same position by construction. In a causal model the completion follows its prompt:

    tokens   p0 p1 p2 c0 c1 c2        the logits at p2 are the distribution of c0
    kept           ^  ^  ^

In an encoder-decoder the encoder reads the prompt, and the decoder the completion, shifted right behind its start token s:

    encoder  p0 p1 p2
    decoder  s  c0 c1                 the logits at s are the distribution of c0
    kept     ^  ^  ^
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100  # the label of a token that is not learnt


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with their completions, right-padded. `labels` has the completion tokens and is -100 elsewhere.

    A causal model has prompt and completion in `input_ids`, and `labels` at the same positions. An encoder-decoder has the
    prompt in `input_ids`, and in `decoder_input_ids` the token that it reads to predict the label at the same position.
    """

    input_ids: Tensor  # (batch, time) int64
    attention_mask: Tensor  # (batch, time) int64
    labels: Tensor  # (batch, time) int64; for an encoder-decoder (batch, completion time)
    decoder_input_ids: Tensor | None = None  # (batch, completion time) int64

    @property
    def completion_mask(self) -> Tensor:
        """Mask of the positions whose logits predict a completion token: bool.

        (batch, time - 1) for a causal model, one step before the token; (batch, completion time) for an encoder-decoder.
        """
        return completion_mask(self.labels, self.decoder_input_ids)

    @property
    def targets(self) -> Tensor:
        """The completion tokens in the order of `completion_logits`: (completion tokens,) int64."""
        return self.labels[self.labels != IGNORED]

    def to(self, device: torch.device) -> TokenBatch:
        decoder = None if self.decoder_input_ids is None else self.decoder_input_ids.to(device)
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device), decoder)


def completion_mask(labels: Tensor, decoder_input_ids: Tensor | None) -> Tensor:
    """Return the mask of the positions that predict a completion token: see `TokenBatch.completion_mask`."""
    return (labels if decoder_input_ids is not None else labels[:, 1:]) != IGNORED


def make_token_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, start_id: int | None = None
) -> TokenBatch:
    """Lay out token ids for one forward pass; every prompt and every completion has at least one token.

    Args:
        prompts, completions: token ids, one of each per row.
        pad_id: the padding token.
        start_id: an encoder-decoder's decoder start token; None for a causal model.
    """
    if start_id is not None:
        input_ids, attention_mask = right_padded(prompts, pad_id)
        labels, _ = right_padded(completions, IGNORED)
        decoder, _ = right_padded([[start_id, *completion[:-1]] for completion in completions], pad_id)
        return TokenBatch(input_ids, attention_mask, labels, decoder)
    both = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    input_ids, attention_mask = right_padded(both, pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, whole) in enumerate(zip(prompts, both, strict=True)):
        labels[row, len(prompt) : len(whole)] = input_ids[row, len(prompt) : len(whole)]
    return TokenBatch(input_ids, attention_mask, labels)


def right_padded(rows: Sequence[Sequence[int] | npt.NDArray[np.int32]], fill: int) -> tuple[Tensor, Tensor]:
    """Return rows of token ids padded into one tensor, and its attention mask: two of (batch, longest) int64."""
    lengths = np.array([len(row) for row in rows])
    filled = np.arange(lengths.max()) < lengths[:, None]  # (batch, longest)
    padded = np.full(filled.shape, fill, dtype=np.int64)
    padded[filled] = np.concatenate(rows)
    return torch.from_numpy(padded), torch.from_numpy(filled.astype(np.int64))


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left, so that all answers begin in one column; returns as `right_padded` does."""
    reversed_ids, reversed_mask = right_padded([[*reversed(prompt)] for prompt in prompts], pad_id)
    return reversed_ids.flip(1), reversed_mask.flip(1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, for sums, exponentials and logarithms; float64 is kept."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def completion_logits(model: torch.nn.Module, batch: TokenBatch) -> Tensor:
    """Return the logits that predict each completion token, row after row: (completion tokens, vocabulary).

    They are float32, even from a model in lower precision, or float64.

    A causal model's output layer runs only from the batch's first completion position on, if the model supports it: with a
    vocabulary of 50,000 it costs as much as many transformer layers.
    """
    mask = batch.completion_mask
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    if batch.decoder_input_ids is not None:
        whole: Tensor = model(**arguments, decoder_input_ids=batch.decoder_input_ids).logits
        return at_least_float32(whole[mask])
    first = int(mask.any(dim=0).int().argmax())
    kept = torch.arange(first, mask.shape[1], device=mask.device)
    if _takes_logits_to_keep(model):
        logits = model(**arguments, logits_to_keep=kept).logits  # (batch, kept, vocabulary)
    else:
        logits = model(**arguments).logits[:, kept]
    selected: Tensor = logits[mask[:, kept]]
    return at_least_float32(selected)


def _takes_logits_to_keep(model: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
