"""Forward Kullback-Leibler divergence, KL(teacher || student) = sum_i p_i (log p_i - log q_i).

The student is penalised wherever the teacher has mass and it has none, so it covers all of the teacher's modes, at the
price of mass between them: the loss of Hinton et al., arXiv 1503.02531 (there a cross-entropy with soft targets; here the
teacher's entropy, a constant, is kept so that the value is 0 at p = q and can be interpreted).

It is the only divergence here whose gradient, q - p, is linear in p: an unbiased estimate p_hat in place of p gives an
unbiased gradient. Only this loss can therefore be learnt from sampled labels (arXiv 2503.16870; base.py says what remains
approximate).

Edge cases: an outcome to which the teacher gives no mass (p = 0) contributes nothing. An outcome that only the student
excludes (q = 0 < p, a logit of -inf) makes the value infinite, which is correct; the gradient is finite.
"""

from __future__ import annotations

from torch import Tensor

from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k", "sampled")


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the KL in nats: (positions, outcomes) log-probabilities of both -> (positions,)."""
    return expectation(teacher.exp(), teacher - student)
