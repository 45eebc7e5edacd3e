"""Total variation distance, 1/2 sum_i |p_i - q_i|, p the teacher and q the student.

The largest difference in probability that the two give to any set of outcomes, between 0 and 1 (a probability, not nats).
Every unit of mass in the wrong place costs the same, whether the student excludes a token or is a little off: robust
against labels that are wrong here and there, and slow where the student is far away, for the gradient with respect to its
logits fades as q_i does. One of the four divergences that f-DISTILL takes at word level (Wen et al., arXiv 2307.15190).

It is not smooth: each outcome pulls with its whole q_i until it is met. Where p_i = q_i the subgradient 0 is taken, so
the gradient is finite and is 0 at p = q.

It is of first order in p - q, the others here are of second. In the objective's T^2 * D the gradient therefore grows with
T, where that of the others stays; give `weight` 1 / T to undo it.

At the edges: finite for every p and q.

Sampled labels are refused: sign(p_hat - q) says of nearly every token only whether it was drawn. A student that is right
would be pulled towards those that were.
"""

from __future__ import annotations

from torch import Tensor

ENCODINGS = ("dense", "top-k")


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(positions, outcomes) log-probabilities of both -> a number from 0 to 1 at each position, (positions,)."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(dim=-1)
