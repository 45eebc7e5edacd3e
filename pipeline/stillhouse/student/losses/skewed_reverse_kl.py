"""Skewed reverse KL, KL(q || (1 - alpha) p + alpha q), p the teacher and q the student.

{kind: skewed-reverse-kl, alpha: 0.1}

The reverse KL with a share alpha of the student mixed into the teacher. The student keeps to modes that it can match, but
an outcome that the teacher almost excludes costs at most -log alpha nats per unit of mass, where the reverse KL grows
without bound. DistiLLM (Ko et al., arXiv 2402.03898), its D_SRKL^(alpha)(p, q), with their alpha = 0.1. The convention is
theirs: alpha is the weight of the student, the first argument of the KL, so alpha -> 0 is the reverse KL and alpha -> 1
is 0. The gradient flows through the student's share of the mixture too; the mixture is not detached.

It is the skewed KL with the two sides exchanged: 0 at p = q, at most -log alpha, and near p = q with a gradient smaller
than that of the reverse KL by (1 - alpha)^2.

Edge cases: finite for every p and q, and the loss to choose where the teacher's mass may be 0. Such an outcome costs
-q log alpha; an outcome with q = 0 costs nothing.

Sampled labels are refused: every token that was not drawn would count as impossible for the teacher, and the gradient is
not linear in p.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses import skewed_kl

ENCODINGS = ("dense", "top-k")


class Options(Settings):
    """Options of this loss, next to `kind` in `student.loss`."""

    alpha: float = Field(default=0.1, gt=0, lt=1, description="the student's share in the mixture")


def divergence(teacher: Tensor, student: Tensor, *, alpha: float) -> Tensor:
    """Return the divergence in nats: (positions, outcomes) log-probabilities of both -> (positions,)."""
    return skewed_kl.divergence(student, teacher, alpha=alpha)
