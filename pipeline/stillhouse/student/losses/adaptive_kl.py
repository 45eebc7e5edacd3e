"""Adaptive KL: w KL(p || q) + (1 - w) KL(q || p), with w = g_head / (g_head + g_tail) at each position.

{kind: adaptive-kl, head_mass: 0.5}

p is the teacher, q the student. The head is the smallest set of the teacher's most likely outcomes that has at least the
mass `head_mass`, the tail is all others, and a gap g is the sum of |p_i - q_i| over its part. Early in a training the
forward KL mends the head first and the reverse KL the tail, so the weight goes to the one whose part is further off: AKL
(Wu et al., arXiv 2404.02657, their mu = 0.5 and their default measure of the gap). No gradient goes through the weights, as
there. The definition is the paper's; the authors' code leaves the outcome that crosses `head_mass` to the tail, unless it
is the first.

Over k + 1 outcomes the last, "any other token", stands for tokens that are each less likely than every listed one. It is
therefore ranked last whatever its mass: the head is that of the whole vocabulary where the listed tokens have `head_mass`
between them; where they have less, all the rest counts as head, g_tail is 0 and only the forward KL is left. The gap of
the rest is that of its whole mass, at most that of its tokens one by one, so a coarse tail leans the weight towards the
head. The mixture is then exact for the coarse distributions, but no bound of the dense one.

At the edges: as for the two KLs (reverse_kl.py on its floor). At p = q both gaps are 0 and so is the value.

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
    """Options of this loss, beside `kind` in `student.loss`."""

    head_mass: float = Field(default=0.5, gt=0, lt=1)  # of the teacher's most likely outcomes


def divergence(teacher: Tensor, student: Tensor, *, head_mass: float) -> Tensor:
    """(positions, outcomes) log-probabilities of both, "any other" last -> nats at each position, (positions,)."""
    weights = _weights(teacher.detach().exp(), student.detach().exp(), head_mass)
    both = [forward_kl.divergence(teacher, student), reverse_kl.divergence(teacher, student)]
    return expectation(weights, torch.stack(both, dim=-1))


def _weights(p: Tensor, q: Tensor, head_mass: float) -> Tensor:
    """Of the forward and of the reverse KL, (positions, 2), from probabilities (positions, outcomes)."""
    ranked = torch.cat([p[:, :-1], torch.full_like(p[:, -1:], -1.0)], dim=-1)
    order = ranked.argsort(dim=-1, descending=True)
    ordered = p.gather(-1, order)
    head = ordered.cumsum(dim=-1) - ordered < head_mass  # the mass of all that are more likely
    gaps = (ordered - q.gather(-1, order)).abs()
    parts = torch.stack([(gaps * head).sum(dim=-1), (gaps * ~head).sum(dim=-1)], dim=-1)  # (positions, 2)
    return parts / parts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
