"""What every divergence works on: teacher and student over the same few outcomes.

Stored soft labels name the teacher's k most likely tokens and the mass of all others. Both sides are therefore read as
distributions over k + 1 outcomes, the k tokens and "any other token". This keeps the tail's mass in the loss: a top-k
distribution renormalised to 1 would teach the student that nothing else can happen (arXiv 2503.16870 measures the harm).
With k = V the last outcome is empty and the divergence is the dense one.

Temperature acts on these k + 1 outcomes, for teacher and student alike: the tail's shape is not stored, so a tempered
tail cannot be known, and tempering both sides of the same coarse distribution keeps zero at equality.

A divergence is a module in this folder (or an entry point `stillhouse.losses`) with one pure function

    def divergence(teacher: Tensor, student: Tensor) -> Tensor     # (positions, outcomes) log-probabilities -> (positions,)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SparseLabels:
    """The teacher's soft labels at some positions, temperature 1, natural logarithms."""

    token_ids: Tensor  # (positions, k) int64
    logprobs: Tensor  # (positions, k) float32
    tail_logprob: Tensor  # (positions,) float32, -inf where nothing is left


def teacher_outcomes(labels: SparseLabels, temperature: float) -> Tensor:
    """The teacher over k + 1 outcomes, tempered and normalised: (positions, k + 1) log-probabilities."""
    outcomes = torch.cat([labels.logprobs, labels.tail_logprob.unsqueeze(-1)], dim=-1)
    return (outcomes / temperature).log_softmax(dim=-1)


def student_outcomes(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """The student over the teacher's k + 1 outcomes: (positions, V) logits -> (positions, k + 1) log-probabilities."""
    listed = logits.gather(-1, token_ids)  # (positions, k)
    if token_ids.shape[-1] == logits.shape[-1]:
        rest = torch.full_like(listed[:, :1], -torch.inf)
    else:
        rest = logits.scatter(-1, token_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    # Normalising is left to the last step: a shared constant falls out of log_softmax, tempered or not.
    return (torch.cat([listed, rest], dim=-1) / temperature).log_softmax(dim=-1)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of weights * values over outcomes, where 0 * anything is 0: (positions, outcomes) -> (positions,).

    The double `where` keeps infinities out of the backward pass too.
    """
    possible = weights > 0
    return (weights * torch.where(possible, values, 0.0)).sum(dim=-1)
