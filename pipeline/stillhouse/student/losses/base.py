"""What every divergence works on: teacher and student over the same few outcomes.

Stored soft labels name the teacher's k most likely tokens and the mass of all others. Both sides are therefore read as
distributions over k + 1 outcomes, the k tokens and "any other token". This keeps the tail's mass in the loss: a top-k
distribution renormalised to 1 would teach the student that nothing else can happen (arXiv 2503.16870 measures the harm).
With k = V the last outcome is empty and the divergence is the dense one.

Temperature acts on these k + 1 outcomes, for teacher and student alike: the tail's shape is not stored, so a tempered
tail cannot be known, and tempering both sides of the same coarse distribution keeps zero at equality.

Sampled labels list the tokens that were drawn, with log(count / draws), and have no tail: p_hat is 0 for every other token,
and the student's mass there is its last outcome. At temperature 1 the gradient of the forward KL is then that of the dense
formula with p_hat in the place of p: q - p_hat, linear in p_hat and so unbiased (arXiv 2503.16870). Approximate are:
- Other temperatures: E[p_hat^(1/T)] is not p^(1/T) (for T > 1 it is less, most of all for tokens that are seldom drawn),
  and the student's tokens that were not drawn are tempered as one outcome.
- Divergences whose gradient is not linear in p_hat: it is biased at every temperature.
- The value of the forward KL: it is too high by the entropy that p_hat lacks against p: compare it only among equal draws.

Dense labels are a live teacher's logits. Their outcomes are the tokens that both models know, and as the last one the rows
that the student alone pads its vocabulary with: there the teacher has no mass, and the student should have none. Rows that
only the teacher has are dropped, and its distribution is the one over the tokens that both know: no student could give them
any mass, and a forward KL would be infinite. With vocabularies of one size the last outcome is empty.

A divergence is a module in this folder (or an entry point `stillhouse.losses`) with one pure function

    def divergence(teacher: Tensor, student: Tensor, **options) -> Tensor     # (positions, outcomes) -> (positions,) nats
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.student.tail_mass import listed_and_rest

Divergence = Callable[[Tensor, Tensor], Tensor]

NO_TOKEN = -1  # in the place of a token id: no entry


@dataclass(frozen=True)
class SparseLabels:
    """The teacher's soft labels at some positions, temperature 1, natural logarithms.

    k is that of the position with the most entries. Where another has fewer, its places behind them hold `NO_TOKEN`, with
    the log-probability -inf: an outcome that neither side gives any mass to.
    """

    token_ids: Tensor  # (positions, k) int64
    logprobs: Tensor  # (positions, k) float32
    tail_logprob: Tensor  # (positions,) float32, -inf where nothing is left

    def __getitem__(self, part: slice) -> SparseLabels:
        """The labels of some of the positions."""
        return SparseLabels(self.token_ids[part], self.logprobs[part], self.tail_logprob[part])

    def to(self, dtype: torch.dtype) -> SparseLabels:
        """The same labels to be computed with in another precision."""
        return SparseLabels(self.token_ids, self.logprobs.to(dtype), self.tail_logprob.to(dtype))


@dataclass(frozen=True)
class DenseLabels:
    """The teacher's logits at some positions, temperature 1: the whole distribution."""

    logits: Tensor  # (positions, the teacher's vocabulary) float32


@dataclass(frozen=True)
class Outcomes:
    """Teacher and student over the same outcomes: (positions, outcomes) log-probabilities each, "any other" last."""

    teacher: Tensor
    student: Tensor


def outcomes(labels: SparseLabels | DenseLabels, logits: Tensor, temperature: float) -> Outcomes:
    """What a divergence is taken of; `logits` is (positions, vocabulary), the student's, float32 or float64."""
    if isinstance(labels, SparseLabels):
        labels = labels.to(logits.dtype)
        return Outcomes(teacher_outcomes(labels, temperature), student_outcomes(logits, labels.token_ids, temperature))
    shared = min(labels.logits.shape[-1], logits.shape[-1])
    return Outcomes(*(_dense_outcomes(side, shared, temperature) for side in (labels.logits[:, :shared], logits)))


def _dense_outcomes(logits: Tensor, shared: int, temperature: float) -> Tensor:
    """(positions, V) logits -> (positions, shared + 1) log-probabilities, those from `shared` on as one outcome."""
    if logits.shape[-1] == shared:
        joined = F.pad(logits, (0, 1), value=-torch.inf)
    else:
        joined = torch.cat([logits[:, :shared], logits[:, shared:].logsumexp(dim=-1, keepdim=True)], dim=-1)
    return (joined / temperature).log_softmax(dim=-1)


def teacher_outcomes(labels: SparseLabels, temperature: float) -> Tensor:
    """The teacher over k + 1 outcomes, tempered and normalised: (positions, k + 1) log-probabilities."""
    outcomes = torch.cat([labels.logprobs, labels.tail_logprob.unsqueeze(-1)], dim=-1)
    return (outcomes / temperature).log_softmax(dim=-1)


def student_outcomes(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """The student over the teacher's k + 1 outcomes: (positions, V) logits -> (positions, k + 1) log-probabilities.

    `token_ids` are those of `SparseLabels`. A place without a token is -inf, and takes none from the last outcome.
    """
    missing = token_ids == NO_TOKEN
    some = token_ids.amax(dim=-1, keepdim=True).clamp(min=0)  # where nothing is listed, all is the last outcome anyhow
    ids = torch.where(missing, some, token_ids)  # listed once more, which changes nothing below
    listed, rest = listed_and_rest(logits, ids)
    listed = listed.masked_fill(missing, -torch.inf)
    # Normalising is left to the last step: a shared constant falls out of log_softmax, tempered or not.
    return (torch.cat([listed, rest], dim=-1) / temperature).log_softmax(dim=-1)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Sum of weights * values over outcomes, where 0 * anything is 0: (positions, outcomes) -> (positions,).

    The double `where` keeps infinities out of the backward pass too.
    """
    possible = weights > 0
    return (weights * torch.where(possible, values, 0.0)).sum(dim=-1)
