"""Total variation distance, 1/2 sum_i |p_i - q_i|, p the teacher and q the student.

The largest difference in probability that the two give to any set of outcomes, between 0 and 1 (a probability, not nats).
Every unit of misplaced mass costs the same, whether the student excludes a token or is slightly off: robust against
occasional wrong labels, and slow where the student is far from the teacher, because the gradient with respect to its logits
vanishes with q_i. One of the four divergences that f-DISTILL uses at word level (Wen et al., arXiv 2307.15190).

It is not smooth: each outcome pulls with its whole q_i until q_i = p_i. There the subgradient 0 is used, so the gradient is
finite and is 0 at p = q.

It is of first order in p - q, the others here are of second. Under the objective's T^2 * D its gradient therefore grows
with T, while that of the others keeps its size; set `weight` to 1 / T to undo this.

Edge cases: finite for every p and q.

Sampled labels are refused: for nearly every token, sign(p_hat - q) says only whether it was drawn. A student that matches
the teacher would be pulled towards the drawn tokens.
"""

from __future__ import annotations

from torch import Tensor

ENCODINGS = ("dense", "top-k")


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the distance, from 0 to 1: (positions, outcomes) log-probabilities of both -> (positions,)."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(dim=-1)
