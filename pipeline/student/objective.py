"""What a student minimises: a divergence from the teacher's soft labels, mixed with cross-entropy on its text.

    L = weight * T^2 * D( teacher / T , student / T )  +  cross_entropy_weight * CE(completion, student)

Both terms are means over completion tokens. T^2 keeps the gradient's size whatever T is (Hinton et al., arXiv 1503.02531).
Black-box is the same with no first term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

import pipeline.student.losses
from pipeline.config import StudentSettings
from pipeline.plugins import load_kind
from pipeline.student.losses.base import Divergence, SparseLabels, student_outcomes, teacher_outcomes


@dataclass(frozen=True)
class Objective:
    """The loss of a recipe. `divergence` is None for a black-box student."""

    divergence: Divergence | None
    temperature: float
    weight: float
    cross_entropy_weight: float

    def __call__(self, logits: Tensor, targets: Tensor, labels: SparseLabels | None) -> Tensor:
        """The sum over positions (the caller divides by the number of tokens of the whole step).

        Args:
            logits: (positions, vocabulary) float32, the student's.
            targets: (positions,) int64, the completion's tokens.
            labels: the teacher's distribution at these positions; needed unless black-box.
        """
        total = self.cross_entropy_weight * F.cross_entropy(logits, targets, reduction="sum")
        if self.divergence is None or self.weight == 0:
            return total
        if labels is None:
            raise ValueError("a white-box objective needs soft labels")
        teacher = teacher_outcomes(labels, self.temperature)
        student = student_outcomes(logits, labels.token_ids, self.temperature)
        return total + self.weight * self.temperature**2 * self.divergence(teacher, student).sum()


def open_objective(settings: StudentSettings) -> Objective:
    """The objective of a recipe; a black-box student learns by plain cross-entropy.

    Raises:
        RecipeError: there is no such kind of loss.
    """
    if settings.mode == "black-box":
        return Objective(None, temperature=1.0, weight=0.0, cross_entropy_weight=1.0)
    loss = settings.loss
    kind: Divergence = load_kind(
        "student.loss.kind", loss.kind, pipeline.student.losses, "divergence", group="stillhouse.losses"
    )
    return Objective(kind, loss.temperature, loss.weight, loss.cross_entropy_weight)
