"""Reverse Kullback-Leibler divergence, KL(student || teacher) = sum_i q_i (log q_i - log p_i).

The student is punished wherever it has mass and the teacher has none, so it keeps to the modes that it can match and lets
others go: fewer answers that the teacher would never give, and less variety. The loss of MiniLLM (Gu et al., arXiv
2306.08543), which takes it over whole sequences that the student writes, by policy gradients. Here it is taken exactly, at
each position of the text that is given; whose text that is stays with the dataset.

Over k + 1 outcomes it is exact for the coarse distributions, and a lower bound of that over the whole vocabulary.

At the edges: where the teacher's mass is 0 and the student's is not, the divergence and its gradient are infinite, and one
such position would end a training. log p is therefore never taken below `FLOOR`, that of the smallest normal float32: the
loss is large there, and pushes the student away. Outcomes that the student never takes (q = 0) count nothing.

Sampled labels are refused. They give every token that was not drawn the mass 0, in most positions thousands that the
teacher does take: the divergence would be infinite, and with a floor it would measure the floor. Nor is log p_hat an
unbiased estimate of log p for the tokens that were drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k")
FLOOR = math.log(torch.finfo(torch.float32).tiny)  # -87.3


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(positions, outcomes) log-probabilities of both -> nats at each position, (positions,)."""
    return expectation(student.exp(), student - teacher.clamp(min=FLOOR))
