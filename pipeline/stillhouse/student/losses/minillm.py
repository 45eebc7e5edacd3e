"""Reverse KL over whole completions that the student wrote, by policy gradient: MiniLLM (Gu et al., arXiv 2306.08543).

The student q lowers KL(q || p) between distributions over completions y. With the reward of a token
r_t = log p(y_t) - log q(y_t), the gradient has two parts (their equations 5 to 8), summed over the positions t of y:

    single step:  grad sum_v q_t(v) (log q_t(v) - log p_t(v))           exact: the reverse KL at this position
    long:         -w_t R_t+1 grad log q(y_t)                            what y_t does to the rest of the completion
    R_t+1 = mean of r_t+1 ... r_T                                       `length_normalised: false`: their sum

y was written by the student as it was, q0, or by the mixture p0 = a p + (1 - a) q0 with the teacher's share a
(`on_policy.teacher_share`); w_t = q0(y_t) / p0(y_t) is their per-token importance weight. The mean defuses the reward of
short completions, whose sums are nearest to 0.

The rewards are those under q0. While q moves away from q0 the long part is PPO's clipped surrogate (arXiv 1707.06347), as
in their code: -min(u A, clip(u, 1 - clip, 1 + clip) A) with u = q(y_t) / q0(y_t) and A = w_t R_t+1. At q = q0 its gradient
is the one above. The single-step part is not weighted: the mean of w_t over y_t is 1.

Rows that the student did not write have the single-step part alone. Over k + 1 outcomes that part is exact for the coarse
distributions; the long part uses the stored log-probability of the written token itself, which is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from stillhouse.settings import Settings
from stillhouse.student.losses import reverse_kl
from stillhouse.student.losses.base import WrittenTokens

ENCODINGS = ("top-k",)

Floats = npt.NDArray[np.float64]


class Options(Settings):
    """Options of this loss, next to `kind` in `on_policy.loss`."""

    clip: float = Field(
        default=0.2, gt=0, description="how far the probability of a written token may move in a round: 0.2 is a fifth"
    )
    length_normalised: bool = Field(
        default=True, description="true: the mean reward of the tokens that follow; false: their sum"
    )


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the single-step part, the reverse KL in nats: (positions, outcomes) of both -> (positions,)."""
    return reverse_kl.divergence(teacher, student)


def advantages(
    teacher: Floats, student: Floats, *, teacher_share: float = 0.0, length_normalised: bool = True
) -> Floats:
    """Return A_t of a completion: (time,) log-probabilities of its tokens under p and q0 -> (time,) nats.

    >>> advantages(np.log([0.5, 0.5, 0.25]), np.log([0.5, 0.25, 0.5])).round(3)
    array([ 0.   , -0.693,  0.   ])
    """
    teacher = np.maximum(teacher, reverse_kl.FLOOR)
    rewards = teacher - student
    following = np.cumsum(rewards[::-1])[::-1] - rewards  # of the tokens after each one
    if length_normalised:
        following = following / np.maximum(np.arange(len(rewards))[::-1], 1)
    mixture = np.logaddexp(_log(teacher_share) + teacher, _log(1 - teacher_share) + student)
    weighted: Floats = np.exp(student - mixture) * following
    return weighted


def _log(share: float) -> float:
    return float(np.log(share)) if share > 0 else -np.inf


def long_part(logits: Tensor, targets: Tensor, written: WrittenTokens, clip: float) -> Tensor:
    """Return the long part at each position: (positions, vocabulary) logits, (positions,) tokens -> (positions,)."""
    now = logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    ratio = (now - written.logprobs).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * written.advantages, clipped * written.advantages)
