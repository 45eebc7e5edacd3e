"""The student's forward pass with the loss as its output; the logits are computed in chunks.

    replace_forward_with_loss(model, objective, chunk=512)
    model(**batch)        # scalar: the objective's sum over the batch's completion tokens

The model's own `forward` is replaced on the instance, so that wrappers of the model (DistributedDataParallel, FSDP,
autocast, LoRA) see one module whose output is the loss: their hooks run as for any other loss, and the output layer's
weights are unsharded when they are needed.

The hidden states go through the head `chunk` positions at a time, and each chunk's logits are recomputed in the backward
pass (torch.utils.checkpoint). At 512 positions and a vocabulary of 128,256 a chunk's logits take 263 MB; those of 8,192
tokens at once would take 4.2 GB, and as much again for every step of the loss. A batch of a single chunk is not recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stillhouse.models.head import Head, split
from stillhouse.models.layout import completion_mask
from stillhouse.student.data.batches import soft_labels_of
from stillhouse.student.losses.base import DenseLabels
from stillhouse.student.training.objective import Labels, Objective

_LAYOUT = ("attention_mask", "position_ids", "decoder_input_ids")  # the model's other inputs of a batch

LabelsAt = Callable[[slice], Labels | None]
Loss = Callable[[Tensor, Tensor, Labels | None], Tensor]  # of logits, targets and labels


class LiveTeacher(Protocol):
    """A teacher that runs while the student trains; `stillhouse.teachers.live` implements it."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of the teacher's output layer."""

    def hidden(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Return hidden states like `stillhouse.models.head.Parts.hidden`: (completion tokens, the teacher's width)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(positions, the teacher's width) -> (positions, the teacher's vocabulary) float32."""


def replace_forward_with_loss(
    model: PreTrainedModel, objective: Objective, *, chunk: int, teacher: LiveTeacher | None = None
) -> None:
    """Replace the model's `forward` with one that returns the loss; in evaluation mode `Objective.held_out_metrics`."""
    parts = split(model)

    def forward(input_ids: Tensor, labels: Tensor, **batch: Tensor) -> Tensor:
        loss = objective if model.training else objective.held_out_metrics
        layout = batch_layout(batch)
        at = _labels_at(objective, batch, teacher, {"input_ids": input_ids, "labels": labels, **layout})
        targets = completion_targets(labels, layout)
        return chunked_loss(loss, parts.head, parts.hidden(input_ids, labels, **layout), targets, at, chunk)

    model.forward = forward


def batch_layout(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's inputs of a batch besides `input_ids`: masks, positions, the decoder's tokens."""
    return {name: batch[name] for name in _LAYOUT if name in batch}


def completion_targets(labels: Tensor, layout: Mapping[str, Tensor]) -> Tensor:
    """Return the completion tokens whose predictions `Parts.hidden` selects: (completion tokens,) int64."""
    mask = completion_mask(labels, layout.get("decoder_input_ids"))
    return labels[:, labels.shape[1] - mask.shape[1] :][mask]  # not labels[:, -n:]: for n = 0 that is the whole row


def chunked_loss(loss: Loss, head: Head, hidden: Tensor, targets: Tensor, at: LabelsAt, chunk: int) -> Tensor:
    """Return the loss summed over all positions, with the logits of at most `chunk` positions in memory.

    Args:
        loss: sums over the positions of its arguments.
        head: (positions, width) -> (positions, vocabulary).
        hidden: (positions, width).
        targets: (positions,) int64.
        at: returns the teacher's labels of a slice of the positions.
        chunk: maximum positions per chunk.
    """

    def part_of(hidden: Tensor, part: slice) -> Tensor:
        return loss(head(hidden), targets[part], at(part))

    if len(targets) <= chunk:
        return part_of(hidden, slice(0, len(targets)))
    again = torch.is_grad_enabled()
    total: Tensor | None = None
    for start in range(0, len(targets), chunk):
        part = slice(start, min(start + chunk, len(targets)))
        one = (
            checkpoint(part_of, hidden[part], part, use_reentrant=False, preserve_rng_state=False)
            if again
            else part_of(hidden[part], part)
        )
        total = one if total is None else total + one
    assert total is not None
    return total


def _labels_at(
    objective: Objective, batch: dict[str, Tensor], teacher: LiveTeacher | None, tokens: dict[str, Tensor]
) -> LabelsAt:
    """Return a function that gets the labels of some positions: from the batch, from the live teacher, or None."""
    if teacher is not None and objective.needs_labels:
        with torch.no_grad():
            hidden = teacher.hidden(**tokens)
        return lambda part: DenseLabels(_no_grad_logits(teacher, hidden[part]))
    stored = soft_labels_of(batch)
    return (lambda _: None) if stored is None else (lambda part: stored[part])


def _no_grad_logits(teacher: LiveTeacher, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher.logits(hidden)
