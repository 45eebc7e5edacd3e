"""A teacher that learns along: one model of two, whose loss is the sum of the teacher's and the student's.

    both = StudentAndTeacher(student, objective, teacher, chunk=512)
    both(**batch)        # scalar: the sum over the batch's completion tokens

In each step the student learns from the teacher as it is then, and the teacher from the references. With a weight above 0
the teacher also learns from the student as it is then (deep mutual learning, Zhang et al., arXiv 1706.00384):

    L_student = objective(references, teacher's distribution)
    L_teacher = CE(references, teacher) + student_weight * KL(student || teacher)

Each distribution is a constant in the other's loss. One optimizer, one schedule and one clipping of gradients are for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.models.head import Parts, split
from stillhouse.student.losses import forward_kl
from stillhouse.student.losses.base import DenseLabels
from stillhouse.student.training.forward import LabelsAt, batch_layout, chunked_loss, completion_targets
from stillhouse.student.training.objective import Objective


@dataclass(frozen=True)
class TeacherAlong:
    """The teacher that learns along."""

    model: PreTrainedModel
    student_weight: float  # of KL(student || teacher) in its loss
    learning_rate: float | None  # None: the student's

    @property
    def objective(self) -> Objective:
        """The teacher's loss, whose "teacher" is the student."""
        divergence = forward_kl.divergence if self.student_weight else None
        return Objective(divergence, temperature=1.0, weight=self.student_weight, cross_entropy_weight=1.0)


class StudentAndTeacher(nn.Module):
    """Both models as one; `forward` returns the loss, and in evaluation mode the figures of held-out rows."""

    def __init__(self, student: PreTrainedModel, objective: Objective, teacher: TeacherAlong, *, chunk: int) -> None:
        """
        Args:
            student: the student's model.
            objective: the student's loss.
            teacher: the teacher, with its loss.
            chunk: maximum positions whose logits are in memory at once, of each model.
        """
        super().__init__()
        self.student, self.teacher = student, teacher.model
        self._objectives = objective, teacher.objective
        self._parts = split(student), split(teacher.model)
        self._chunk = chunk
        self.register_state_dict_post_hook(_each_weight_once)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_each_name)  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, labels: Tensor, **batch: Tensor) -> Tensor:
        """Return the sum of both losses over the completion tokens: scalar.

        In evaluation mode: the student's `Objective.held_out_metrics`, then the teacher's cross-entropy, (4,).
        """
        layout = batch_layout(batch)
        targets = completion_targets(labels, layout)
        student, teacher = self._parts
        hidden = student.hidden(input_ids, labels, **layout)
        teachers = teacher.hidden(input_ids, labels, **layout)
        objective, teachers_objective = self._objectives
        told = labels_of(teacher, teachers)
        if not self.training:
            figures = chunked_loss(objective.held_out_metrics, student.head, hidden, targets, told, self._chunk)
            own = chunked_loss(_cross_entropy, teacher.head, teachers, targets, told, self._chunk)
            return torch.cat([figures, own[None]])
        loss = chunked_loss(objective, student.head, hidden, targets, told, self._chunk)
        heard = labels_of(student, hidden)
        return loss + chunked_loss(teachers_objective, teacher.head, teachers, targets, heard, self._chunk)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute the activations of both in the backward pass."""
        for model in (self.student, self.teacher):
            model.gradient_checkpointing_enable(**settings)

    def parameter_groups(self, groups: list[dict[str, Any]], learning_rate: float | None) -> list[dict[str, Any]]:
        """Return an optimizer's groups with the teacher's parameters in groups of their own, with its learning rate."""
        teachers = {id(one) for one in self.teacher.parameters()}
        parted = []
        for group in groups:
            rate = group["lr"] if learning_rate is None else learning_rate
            own = [one for one in group["params"] if id(one) in teachers]
            rest = [one for one in group["params"] if id(one) not in teachers]
            parted += [{**group, "params": rest}, {**group, "params": own, "lr": rate}]
        return [group for group in parted if group["params"]]


def _each_weight_once(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Leave the second names of tied weights out: a file of safetensors holds no tensor twice."""
    once = {f"{prefix}{name}" for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    for name in state.keys() - once:
        del state[name]


def _each_name(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give tied weights that were saved once all their names again."""
    first = {id(weight): name for name, weight in module.named_parameters()}
    for name, weight in module.named_parameters(remove_duplicate=False):
        saved = state.get(f"{prefix}{first[id(weight)]}")
        if saved is not None:
            state.setdefault(f"{prefix}{name}", saved)


def labels_of(parts: Parts, hidden: Tensor) -> LabelsAt:
    """Return a model's distributions at its hidden states as labels, without a gradient."""
    constant = hidden.detach()

    @torch.no_grad()
    def at(part: slice) -> DenseLabels:
        return DenseLabels(parts.head(constant[part]))

    return at


def teachers_log(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the log of a training of both as the teacher's: its held-out loss is its own cross-entropy."""
    own = []
    for entry in log:
        measured = entry.get("eval_teacher_cross_entropy")
        kept = {name: value for name, value in entry.items() if not name.startswith("eval_")}
        own.append(kept if measured is None else {**kept, "eval_loss": measured, "eval_cross_entropy": measured})
    return own


def _cross_entropy(logits: Tensor, targets: Tensor, _: object) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")
