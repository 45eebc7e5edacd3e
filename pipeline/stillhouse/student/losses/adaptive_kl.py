"""Adaptive KL: w KL(p || q) + (1 - w) KL(q || p), with w = g_head / (g_head + g_tail) at each position.

{kind: adaptive-kl, head_mass: 0.5}

p is the teacher, q the student. The head is the smallest set of the teacher's most likely outcomes whose mass is at least
`head_mass`; the tail is all other outcomes. A gap g is the sum of |p_i - q_i| over the head or the tail. Early in training
the forward KL corrects the head first and the reverse KL the tail, so the KL whose part has the larger gap gets the larger
weight: AKL (Wu et al., arXiv 2404.02657, with their mu = 0.5 and their default gap measure). The weights are detached, as
in the paper. The definition is the paper's; the authors' code puts the outcome that crosses `head_mass` in the tail, unless
it is the first.

Over k + 1 outcomes the last, "any other token", stands for tokens that are each less likely than every listed one, so it
ranks last whatever its mass. If the listed tokens together have `head_mass`, the head is that of the whole vocabulary. If
they have less, every outcome belongs to the head, g_tail is 0 and only the forward KL remains. The last outcome's gap is
that of its total mass, at most the sum of its tokens' gaps, so a coarse tail shifts the weight towards the head. The
mixture is exact for the coarse distributions, but is no bound of the dense one.

Edge cases: as for the two KLs (see reverse_kl.py for its floor). At p = q both gaps are 0 and so is the value.

Sampled labels are refused, as for the reverse KL.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses import forward_kl, reverse_kl
from stillhouse.student.losses.base import expectation

ENCODINGS = ("dense", "top-k")


class Options(Settings):
    """Options of this loss, next to `kind` in `student.loss`."""

    head_mass: float = Field(
        default=0.5, gt=0, lt=1, description="mass of the teacher's most likely outcomes that form the head"
    )


def divergence(teacher: Tensor, student: Tensor, *, head_mass: float) -> Tensor:
    """Return the mixture in nats: (positions, outcomes) log-probabilities of both, "any other" last -> (positions,)."""
    weights = _weights(teacher.detach().exp(), student.detach().exp(), head_mass)
    both = [forward_kl.divergence(teacher, student), reverse_kl.divergence(teacher, student)]
    return expectation(weights, torch.stack(both, dim=-1))


def _weights(p: Tensor, q: Tensor, head_mass: float) -> Tensor:
    """Return the weights of the forward and the reverse KL, (positions, 2), from (positions, outcomes) probabilities."""
    ranked = torch.cat([p[:, :-1], torch.full_like(p[:, -1:], -1.0)], dim=-1)
    order = ranked.argsort(dim=-1, descending=True)
    ordered = p.gather(-1, order)
    head = ordered.cumsum(dim=-1) - ordered < head_mass  # the mass of all more likely outcomes is below head_mass
    gaps = (ordered - q.gather(-1, order)).abs()
    parts = torch.stack([(gaps * head).sum(dim=-1), (gaps * ~head).sum(dim=-1)], dim=-1)  # (positions, 2)
    return parts / parts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
