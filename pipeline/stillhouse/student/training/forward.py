"""The student's forward pass, which ends in the loss: what the head gives is held a piece at a time.

    end_in_loss(model, objective, chunk=512)
    model(**batch)        # scalar: the objective's sum over the batch's completion tokens

The model's own `forward` is replaced on the instance, so that whatever is wrapped around the model
(DistributedDataParallel, FSDP, autocast, LoRA) sees one module whose output is the loss: its hooks run as they do for any
other loss, and the output layer's weights are there, whole, when they are needed.

The hidden states go through the head `chunk` positions at a time, and each chunk's logits are computed again in the
backward pass (torch.utils.checkpoint). At 512 positions and a vocabulary of 128,256 a chunk's logits take 263 MB; those of
8,192 tokens at once would take 4.2 GB, and as much again for every step of the loss. A batch of one chunk is not computed
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stillhouse.models.head import Head, split
from stillhouse.models.layout import foretelling
from stillhouse.student.data.batches import soft_labels_of
from stillhouse.student.losses.base import DenseLabels
from stillhouse.student.training.objective import Labels, Objective

_LAYOUT = ("attention_mask", "position_ids", "decoder_input_ids")  # what else a model is told of a batch

LabelsAt = Callable[[slice], Labels | None]
Loss = Callable[[Tensor, Tensor, Labels | None], Tensor]  # of logits, targets and labels


class LiveTeacher(Protocol):
    """A teacher that is there while the student learns; `stillhouse.teachers.live` has one."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of its output layer."""

    def hidden(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """As `stillhouse.models.head.Parts.hidden`: (completion tokens, its width)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(positions, its width) -> (positions, its vocabulary) float32."""


def end_in_loss(
    model: PreTrainedModel, objective: Objective, *, chunk: int, teacher: LiveTeacher | None = None
) -> None:
    """See the module's docstring. In evaluation mode the output is `Objective.measured`, (3,)."""
    parts = split(model)

    def forward(input_ids: Tensor, labels: Tensor, **batch: Tensor) -> Tensor:
        loss = objective if model.training else objective.measured
        layout: dict[str, Tensor] = {name: batch[name] for name in _LAYOUT if name in batch}
        at = _labels_at(objective, batch, teacher, {"input_ids": input_ids, "labels": labels, **layout})
        mask = foretelling(labels, layout.get("decoder_input_ids"))
        targets = labels[:, labels.shape[1] - mask.shape[1] :][mask]  # with -0 it would be all of them
        return summed_in_chunks(loss, parts.head, parts.hidden(input_ids, labels, **layout), targets, at, chunk)

    model.forward = forward


def summed_in_chunks(loss: Loss, head: Head, hidden: Tensor, targets: Tensor, at: LabelsAt, chunk: int) -> Tensor:
    """The loss of all positions, a sum, with at most `chunk` of them as logits at a time.

    Args:
        loss: sums over the positions that it is given.
        head: (positions, width) -> (positions, vocabulary).
        hidden: (positions, width).
        targets: (positions,) int64.
        at: the teacher's labels of some positions.
        chunk: positions.
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
    """Where the labels of some positions come from: the batch, the live teacher, or nowhere."""
    if teacher is not None and objective.needs_labels:
        with torch.no_grad():
            hidden = teacher.hidden(**tokens)
        return lambda part: DenseLabels(_no_grad_logits(teacher, hidden[part]))
    stored = soft_labels_of(batch)
    return (lambda _: None) if stored is None else (lambda part: stored[part])


def _no_grad_logits(teacher: LiveTeacher, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher.logits(hidden)
