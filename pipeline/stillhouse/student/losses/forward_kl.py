"""Forward Kullback-Leibler divergence, KL(teacher || student) = sum_i p_i (log p_i - log q_i).

The student is punished wherever the teacher has mass and it has none, so it covers all of the teacher's modes, at the price
of mass between them: the loss of Hinton et al., arXiv 1503.02531 (there as a cross-entropy with soft targets; the teacher's
entropy, a constant, is kept here so that the value is 0 at p = q and can be read).

It is the one divergence here whose gradient, q - p, is linear in p: an unbiased estimate p_hat in the place of p gives an
unbiased gradient. So it alone can be learnt from sampled labels (arXiv 2503.16870, and base.py on what is lost all the
same).

At the edges: an outcome that the teacher never takes (p = 0) counts nothing. One that only the student can never take
(q = 0 < p, a logit of -inf) makes the value infinite, as it is; its gradient is finite.
"""

from __future__ import annotations

from torch import Tensor

from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k", "sampled")


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(positions, outcomes) log-probabilities of both -> nats at each position, (positions,)."""
    return expectation(teacher.exp(), teacher - student)
