"""How near a student is to its teacher on some rows, in both directions, from the teacher's stored top-k labels.

    measured = measure_on(lm, examples)     # of the teacher's text, or of the student's own

The divergences are over the k listed tokens and the tail (losses/base.py), so they are lower bounds of those over the whole
vocabulary. `overlap` and its masses follow arXiv 2604.13016: on-policy distillation works on the tokens that both models
find likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.models.layout import completion_logits
from stillhouse.models.load import LanguageModel
from stillhouse.student.data.batches import collator, soft_labels_of, tokens_of
from stillhouse.student.data.rows import Example
from stillhouse.student.finished.rounds import TextDistance
from stillhouse.student.losses import forward_kl, reverse_kl
from stillhouse.student.losses.base import PAD_TOKEN_ID, SparseLabels, student_outcomes, teacher_outcomes

_BATCH = 16  # rows per forward pass


@dataclass
class _Sums:
    tokens: int = 0
    values: Tensor | None = None  # (6,) float64, in the order of `TextDistance`

    def add(self, values: Tensor, tokens: int) -> None:
        self.tokens += tokens
        self.values = values if self.values is None else self.values + values


def measure_on(lm: LanguageModel, examples: Sequence[Example]) -> TextDistance | None:
    """Return the distance on rows with top-k labels; None if they have no completion token."""
    collate = collator(lm.pad_id, lm.start_id)
    sums = _Sums()
    was_training = lm.model.training
    lm.model.eval()
    for start in range(0, len(examples), _BATCH):
        batch = {key: tensor.to(lm.device) for key, tensor in collate(examples[start : start + _BATCH]).items()}
        labels = soft_labels_of(batch)
        assert labels is not None
        with torch.inference_mode():
            logits = completion_logits(lm.model, tokens_of(batch))
            sums.add(position_sums(logits, labels), len(logits))
    lm.model.train(was_training)
    if sums.values is None or not sums.tokens:
        return None
    means = (sums.values / sums.tokens).tolist()
    names = ("forward_kl", "reverse_kl", "entropy", "overlap", "teacher_mass", "student_mass")
    return TextDistance(tokens=sums.tokens, **dict(zip(names, means, strict=True)))


def position_sums(logits: Tensor, labels: SparseLabels) -> Tensor:
    """Return the sums over positions of the figures of `TextDistance`: (positions, vocabulary) float32 -> (6,) float64."""
    logits = logits.double()
    teacher = teacher_outcomes(labels.to(logits.dtype), 1.0)  # (positions, k + 1)
    student = student_outcomes(logits, labels.token_ids, 1.0)
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)
    listed = labels.token_ids != PAD_TOKEN_ID
    k = min(labels.token_ids.shape[-1], logits.shape[-1])
    likeliest = logits.topk(k, dim=-1).indices  # (positions, k)
    shared = (labels.token_ids.unsqueeze(-1) == likeliest.unsqueeze(-2)).any(dim=-1) & listed  # (positions, k)
    overlap = shared.double().sum(dim=-1) / listed.double().sum(dim=-1).clamp(min=1)
    masses = [(side[:, :-1].exp() * shared).sum(dim=-1) for side in (teacher, student)]
    figures = [forward_kl.divergence(teacher, student), reverse_kl.divergence(teacher, student), entropy, overlap]
    return torch.stack([figure.sum() for figure in [*figures, *masses]]).cpu()
