"""Skewed forward KL, KL(p || alpha p + (1 - alpha) q), p the teacher and q the student.

{kind: skewed-kl, alpha: 0.1}

A share alpha of the teacher is mixed into the student, so that no outcome costs more than -log alpha nats per unit of the
teacher's mass, and one position cannot dominate a batch. It covers the teacher's modes as the forward KL does, but gives up
sooner: a token that the student almost excludes (q far below alpha p) is pulled in proportion to q, not to p. DistiLLM (Ko
et al., arXiv 2402.03898), its D_SKL^(alpha)(p, q), with their alpha = 0.1. The convention is theirs: alpha is the weight of
the KL's first argument, so alpha -> 0 is the forward KL and alpha -> 1 is 0. (Their released code leaves out the teacher's
entropy, a constant; here the value is 0 at p = q.)

The value is between 0 and -log alpha. The gradient is smaller than that of the forward KL, near p = q by (1 - alpha)^2.

Edge cases: finite for every p and q. An outcome costs -p log alpha where q = 0, and nothing where p = 0.

Sampled labels are refused: p is in the mixture too, so the gradient is not linear in it, and an estimate of p from draws
would have a biased gradient.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k")


class Options(Settings):
    """Options of this loss, next to `kind` in `student.loss`."""

    alpha: float = Field(default=0.1, gt=0, lt=1, description="the teacher's share in the mixture")


def divergence(teacher: Tensor, student: Tensor, *, alpha: float) -> Tensor:
    """Return the divergence in nats: (positions, outcomes) log-probabilities of both -> (positions,)."""
    # log p / m = -log(alpha + (1 - alpha) q / p); where p = 0 its weight is 0, and any finite number works
    ratio = torch.where(teacher.isneginf(), 0.0, student - teacher)  # log q / p
    own, other = (ratio.new_full((), share).log() for share in (alpha, 1 - alpha))
    return expectation(teacher.exp(), -torch.logaddexp(own, other + ratio))
