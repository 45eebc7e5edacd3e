"""Forward Kullback-Leibler divergence, KL(teacher || student) = sum_i p_i (log p_i - log q_i).

The student is punished wherever the teacher has mass and it has none, so it covers all of the teacher's modes: the loss of
Hinton et al., arXiv 1503.02531 (there as a cross-entropy with soft targets; the teacher's entropy, a constant, is kept
here so that the value is 0 at p = q and can be read).
"""

from __future__ import annotations

from torch import Tensor

from pipeline.student.losses.base import expectation


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(positions, outcomes) log-probabilities of both -> nats at each position, (positions,)."""
    possible = teacher.isfinite()
    difference = teacher.masked_fill(~possible, 0.0) - student.masked_fill(~possible, 0.0)
    return expectation(teacher.exp(), difference)
