"""The student's training objective: a divergence from the teacher's soft labels, mixed with cross-entropy on its text.

    L = weight * T^2 * D(teacher / T || student / T)  +  cross_entropy_weight * CE(completion, student)

Both terms are means over completion tokens. A black-box objective lacks the first term.

T^2 (Hinton et al., arXiv 1503.02531) keeps the size of the gradient independent of T. This is exact to first order in
1 / T, so for T large against the logits, for every divergence that is of second order in p - q: both KLs, both skewed KLs,
the Jensen-Shannon family, the adaptive KL. Total variation is of first order: under T^2 its gradient grows with T. The
factor is the same for all, so that exchanging one kind for another does not change the meaning of `weight`.

What is exact, and what approximate:

| labels  | at temperature 1                                        | at any other                                        |
| dense   | exact                                                   | exact                                               |
| top-k   | exact between the coarse distributions, k tokens and    | both sides of the coarse distributions are tempered,|
|         | the tail; of the dense value a lower bound (not for     | the tail as one outcome: 0 where they agree, but    |
|         | adaptive-kl)                                            | neither the dense value nor a bound of it           |
| sampled | forward-kl alone, whose gradient is unbiased            | biased, see losses/base.py                          |
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stillhouse.student.losses
from stillhouse.errors import RecipeError, RecipeFaults
from stillhouse.plugins import LOSSES, built_in_kinds, load_kind
from stillhouse.recipe.student import LossSettings, StudentSettings
from stillhouse.settings import Settings, nearest, parse_options
from stillhouse.student.losses import forward_kl, minillm
from stillhouse.student.losses.base import DenseLabels, Divergence, SparseLabels, paired_outcomes

Labels = SparseLabels | DenseLabels


@dataclass(frozen=True)
class Objective:
    """The loss of a recipe. `divergence` is None for a student that learns from text alone."""

    divergence: Divergence | None
    temperature: float
    weight: float
    cross_entropy_weight: float
    minillm: minillm.Options | None = None  # set if the divergence is the single-step part of that loss

    @property
    def needs_labels(self) -> bool:
        """Whether the objective uses the teacher's distributions."""
        return self.divergence is not None and self.weight > 0

    def __call__(self, logits: Tensor, targets: Tensor, labels: Labels | None) -> Tensor:
        """Return the loss summed over positions (the caller divides by the number of tokens of the whole step).

        Args:
            logits: the student's logits, (positions, vocabulary) float32 or float64.
            targets: the completion's tokens, (positions,) int64.
            labels: the teacher's distributions at these positions; needed unless black-box.
        """
        if len(targets) == 0:
            return logits.sum()  # 0, with gradients of 0: a process may have none of a step's rows
        total = logits.new_zeros(())
        if self.cross_entropy_weight > 0:
            total = self.cross_entropy_weight * F.cross_entropy(logits, targets, reduction="sum")
        if self.divergence is None or self.weight == 0:
            return total
        if labels is None:
            raise ValueError("a white-box objective needs soft labels")
        both = paired_outcomes(labels, logits, self.temperature)
        total = total + self.weight * self.temperature**2 * self.divergence(both.teacher, both.student).sum()
        if self.minillm is not None and isinstance(labels, SparseLabels) and labels.written is not None:
            long = minillm.long_part(logits, targets, labels.written, self.minillm.clip)
            total = total + self.weight * long.sum()
        return total

    def held_out_metrics(self, logits: Tensor, targets: Tensor, labels: Labels | None) -> Tensor:
        """Return the metrics of held-out rows, summed over positions: (3,).

        They are the loss, the forward KL at temperature 1 (NaN without labels), and the cross-entropy. Without positions
        all are 0, with or without labels: one of several processes may have none of the held-out rows.
        """
        if len(targets) == 0:
            return logits.sum().expand(3)
        divergence = logits.new_full((), torch.nan)
        if labels is not None:
            both = paired_outcomes(labels, logits, 1.0)
            divergence = forward_kl.divergence(both.teacher, both.student).sum()
        cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
        return torch.stack([self(logits, targets, labels), divergence, cross_entropy])


def load_objective(settings: StudentSettings, encoding: str | None = None) -> Objective:
    """Return the objective of a recipe; a student that learns from text alone has plain cross-entropy.

    Args:
        settings: the recipe's student.
        encoding: encoding of the soft labels that a white-box student learns from; None if it is not known.

    Raises:
        RecipeError: the kind of loss is unknown, an option is wrong, or the loss does not accept this encoding.
    """
    loss = settings.loss
    if settings.mode != "white-box":
        load_divergence(loss)
        return Objective(None, temperature=1.0, weight=0.0, cross_entropy_weight=1.0)
    divergence, options = _load(loss, encoding)
    policy = options if isinstance(options, minillm.Options) else None
    return Objective(divergence, loss.temperature, loss.weight, loss.cross_entropy_weight, policy)


def load_divergence(loss: LossSettings, encoding: str | None = None) -> Divergence:
    """Return the divergence of a recipe with its options bound. losses/__init__.py describes its module.

    Raises:
        RecipeError: the kind of loss is unknown, an option is wrong, or the loss does not accept this encoding.
    """
    return _load(loss, encoding)[0]


def _load(loss: LossSettings, encoding: str | None) -> tuple[Divergence, Settings]:
    """Return the divergence of a recipe with its options bound, and the options."""
    divergence = load_kind("student.loss.kind", loss.kind, stillhouse.student.losses, "divergence", group=LOSSES)
    module = inspect.getmodule(divergence)
    expected: type[Settings] = getattr(module, "Options", Settings)
    known = [*expected.model_fields, *LossSettings.model_fields]
    unknown = [name for name in loss.options if name not in known]
    if unknown:
        faults = [
            RecipeError(f"{loss.kind} has no such setting", setting=f"student.loss.{name}", fix=nearest(name, known))
            for name in unknown
        ]
        raise faults[0] if len(faults) == 1 else RecipeFaults.of(faults)
    options = parse_options("student.loss", loss.options, expected)
    if encoding is not None and not _accepts(module, encoding):
        raise _refusal(loss.kind, encoding, getattr(module, "ENCODINGS", ()))
    if isinstance(options, minillm.Options):
        if loss.temperature != 1:
            raise RecipeError(
                "minillm learns from the rewards of tokens that were drawn at temperature 1",
                setting="student.loss.temperature",
                value=loss.temperature,
                fix="set it to 1",
            )
        return divergence, options
    bound: Divergence = partial(divergence, **options.model_dump())
    return bound, options


def _accepts(module: Any, encoding: str) -> bool:
    return encoding in getattr(module, "ENCODINGS", (encoding,))


def _refusal(kind: str, encoding: str, accepted: Collection[str]) -> RecipeError:
    """Return the error for a loss that does not accept labels of this encoding, with the two ways to fix it."""
    name = stillhouse.student.losses.__name__
    modules = built_in_kinds(stillhouse.student.losses).items()
    others = [other for other, module in modules if _accepts(importlib.import_module(f"{name}.{module}"), encoding)]
    return RecipeError(
        f"this divergence cannot be estimated from {encoding} labels (label.soft.encoding)",
        setting="student.loss.kind",
        value=kind,
        fix=f"set label.soft.encoding to {' or '.join(sorted(set(accepted) - {'dense'}))}, or student.loss.kind to "
        f"{' or '.join(sorted(others))}",
    )
