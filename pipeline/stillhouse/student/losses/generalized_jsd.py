"""Generalised Jensen-Shannon divergence, beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

{kind: generalized-jsd, beta: 0.5}

p is the teacher, q the student. Between the forward KL, which covers all modes, and the reverse KL, which chooses among
them: GKD (Agarwal et al., arXiv 2306.13649). At 0.5 it is the Jensen-Shannon divergence, the same with p and q exchanged.
What is left near the ends, when the factor that shrinks there is divided out, are the KLs:

    beta -> 0:  JSD / beta       -> KL(p || q), forward
    beta -> 1:  JSD / (1 - beta) -> KL(q || p), reverse

The factor itself is kept, as in the paper: near p = q the gradient is beta (1 - beta) times that of the KL, a quarter at
0.5. Raise `weight` for what that takes away; at the limits themselves use forward-kl or reverse-kl, for there it is 0.

It is at most the entropy of (beta, 1 - beta), log 2 at 0.5, so one position can never rule a batch.

At the edges: finite for every p and q. Where p = 0 an outcome costs -(1 - beta) q log(1 - beta), where q = 0
-beta p log beta, where both are 0 nothing.

Sampled labels are refused: the gradient is not linear in p, so draws in the place of p bias it.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses import skewed_kl

ENCODINGS = ("dense", "top-k")


class Options(Settings):
    """Options of this loss, beside `kind` in `student.loss`."""

    beta: float = Field(default=0.5, gt=0, lt=1)  # the teacher's share in the mixture, and the weight of its KL


def divergence(teacher: Tensor, student: Tensor, *, beta: float) -> Tensor:
    """(positions, outcomes) log-probabilities of both -> nats at each position, (positions,)."""
    # m has the share beta of p and 1 - beta of q: both terms are skewed KLs
    of_teacher = skewed_kl.divergence(teacher, student, alpha=beta)
    of_student = skewed_kl.divergence(student, teacher, alpha=1 - beta)
    return beta * of_teacher + (1 - beta) * of_student
