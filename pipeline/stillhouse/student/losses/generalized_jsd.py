"""Generalised Jensen-Shannon divergence, beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

{kind: generalized-jsd, beta: 0.5}

p is the teacher, q the student. It interpolates between the forward KL, which covers all modes, and the reverse KL, which
selects some of them: GKD (Agarwal et al., arXiv 2306.13649). At beta = 0.5 it is the Jensen-Shannon divergence, which is
symmetric in p and q. Near the ends, divided by the factor that vanishes there, it becomes the KLs:

    beta -> 0:  JSD / beta       -> KL(p || q), forward
    beta -> 1:  JSD / (1 - beta) -> KL(q || p), reverse

The factor itself is kept, as in the paper: near p = q the gradient is beta (1 - beta) times that of the KL, a quarter at
0.5. Raise `weight` to compensate. At the ends themselves the JSD is 0, so 0 means the forward KL and 1 the reverse KL, as
they do in TRL's GKD.

It is at most the entropy of (beta, 1 - beta), log 2 at 0.5, so one position can never dominate a batch.

Edge cases: finite for every p and q. An outcome costs -(1 - beta) q log(1 - beta) where p = 0, -beta p log beta where
q = 0, and nothing where both are 0.

Sampled labels are refused: the gradient is not linear in p, so draws in place of p bias it.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses import forward_kl, reverse_kl, skewed_kl

ENCODINGS = ("dense", "top-k")


class Options(Settings):
    """Options of this loss, next to `kind` in `student.loss`."""

    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the teacher's share in the mixture, and the weight of its KL; 0: forward KL, 1: reverse KL",
    )


def divergence(teacher: Tensor, student: Tensor, *, beta: float) -> Tensor:
    """Return the divergence in nats: (positions, outcomes) log-probabilities of both -> (positions,)."""
    if beta == 0:
        return forward_kl.divergence(teacher, student)
    if beta == 1:
        return reverse_kl.divergence(teacher, student)
    # m has the share beta of p and 1 - beta of q: both terms are skewed KLs
    of_teacher = skewed_kl.divergence(teacher, student, alpha=beta)
    of_student = skewed_kl.divergence(student, teacher, alpha=1 - beta)
    return beta * of_teacher + (1 - beta) * of_student
