"""Reverse Kullback-Leibler divergence, KL(student || teacher) = sum_i q_i (log q_i - log p_i).

The student is penalised wherever it has mass and the teacher has none, so it keeps to the modes that it can match and drops
others: fewer answers that the teacher would never give, and less variety. It is the loss of MiniLLM (Gu et al., arXiv
2306.08543), which estimates it over whole sequences that the student generates, by policy gradients. Here it is computed
exactly, at each position of the given text; the dataset decides whose text that is.

Over k + 1 outcomes it is exact for the coarse distributions, and a lower bound of that over the whole vocabulary.

Edge cases: where the teacher's mass is 0 and the student's is not, the divergence and its gradient are infinite, and one
such position would end a training. log p is therefore clamped from below at `FLOOR`, the log of the smallest normal
float32: the loss is large there and pushes the student away. Outcomes to which the student gives no mass (q = 0) contribute
nothing.

Sampled labels are refused. They give probability 0 to every token that was not drawn; at most positions the teacher could
have drawn thousands of others: the divergence would be infinite, and with a floor it would measure the floor. Nor is log
p_hat an unbiased estimate of log p for the tokens that were drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k")
FLOOR = math.log(torch.finfo(torch.float32).tiny)  # -87.3


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the KL in nats: (positions, outcomes) log-probabilities of both -> (positions,)."""
    return expectation(student.exp(), student - teacher.clamp(min=FLOOR))
