"""The outcomes that every divergence compares: teacher and student over the same few tokens and one tail.

Stored soft labels name the teacher's k most likely tokens and the mass of all others. Both sides are therefore read as
distributions over k + 1 outcomes: the k tokens and "any other token". This keeps the tail mass in the loss; a top-k
distribution renormalised to 1 would teach the student that no other token can occur (arXiv 2503.16870 measures the harm).
With k = V the last outcome is empty and the divergence is the dense one.

Temperature is applied to these k + 1 outcomes, for teacher and student alike. The shape of the tail is not stored, so a
tempered tail cannot be computed; tempering both sides of the same coarse distribution keeps the value 0 at equality.

Sampled labels list the tokens that were drawn, with log(count / draws), and have no tail: p_hat is 0 for every other token,
and the student's mass there is its last outcome. At temperature 1 the gradient of the forward KL is then that of the dense
formula with p_hat in place of p: q - p_hat, linear in p_hat and so unbiased (arXiv 2503.16870). Approximate are:
- Other temperatures: E[p_hat^(1/T)] is not p^(1/T) (for T > 1 it is less, most of all for tokens that are seldom drawn),
  and the student's tokens that were not drawn are tempered as one outcome.
- Divergences whose gradient is not linear in p_hat: it is biased at every temperature.
- The value of the forward KL: it is too high, on average by H(p) - E[H(p_hat)], so compare it only at an equal number of
  draws.

Dense labels are a live teacher's logits. Their outcomes are the tokens in both vocabularies, plus a last outcome for the
padding rows that only the student has: the teacher has no mass there, and the student should have none. Rows that only the
teacher has are dropped and its distribution is renormalised over the shared tokens: no student could give those rows any
mass, and a forward KL would be infinite. With vocabularies of equal size the last outcome is empty.

A divergence is a module in this folder (or an entry point `stillhouse.losses`) with one pure function

    def divergence(teacher: Tensor, student: Tensor, **options) -> Tensor     # (positions, outcomes) -> (positions,) nats
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.student.tail_mass import listed_and_tail

Divergence = Callable[[Tensor, Tensor], Tensor]

PAD_TOKEN_ID = -1  # padding in place of a token id


@dataclass(frozen=True)
class WrittenTokens:
    """What the loss `minillm` knows of completion tokens that the student wrote; of others, zeros."""

    logprobs: Tensor  # (positions,) float32, of the written token under the student as training began
    advantages: Tensor  # (positions,) float32, nats

    def __getitem__(self, part: slice) -> WrittenTokens:
        """Return those of a slice of the positions."""
        return WrittenTokens(self.logprobs[part], self.advantages[part])


@dataclass(frozen=True)
class SparseLabels:
    """The teacher's soft labels at some positions, temperature 1, natural logarithms.

    k is the number of entries at the position that has the most. Positions with fewer are padded with `PAD_TOKEN_ID` and
    the log-probability -inf: an outcome to which neither side gives any mass.
    """

    token_ids: Tensor  # (positions, k) int64
    logprobs: Tensor  # (positions, k) float32
    tail_logprob: Tensor  # (positions,) float32, -inf where the tail is empty
    written: WrittenTokens | None = None  # for a policy gradient

    def __getitem__(self, part: slice) -> SparseLabels:
        """Return the labels of a slice of the positions."""
        written = None if self.written is None else self.written[part]
        return SparseLabels(self.token_ids[part], self.logprobs[part], self.tail_logprob[part], written)

    def to(self, dtype: torch.dtype) -> SparseLabels:
        """Return the same labels in another precision."""
        return replace(self, logprobs=self.logprobs.to(dtype), tail_logprob=self.tail_logprob.to(dtype))


@dataclass(frozen=True)
class DenseLabels:
    """The teacher's logits at some positions, temperature 1: the whole distribution."""

    logits: Tensor  # (positions, the teacher's vocabulary) float32


@dataclass(frozen=True)
class Outcomes:
    """Teacher and student over the same outcomes: (positions, outcomes) log-probabilities each, "any other" last."""

    teacher: Tensor
    student: Tensor


def paired_outcomes(labels: SparseLabels | DenseLabels, logits: Tensor, temperature: float) -> Outcomes:
    """Return both sides of a divergence; `logits` are the student's, (positions, vocabulary) float32 or float64."""
    if isinstance(labels, SparseLabels):
        labels = labels.to(logits.dtype)
        return Outcomes(teacher_outcomes(labels, temperature), student_outcomes(logits, labels.token_ids, temperature))
    shared = min(labels.logits.shape[-1], logits.shape[-1])
    return Outcomes(*(_dense_outcomes(side, shared, temperature) for side in (labels.logits[:, :shared], logits)))


def _dense_outcomes(logits: Tensor, shared: int, temperature: float) -> Tensor:
    """(positions, V) logits -> (positions, shared + 1) log-probabilities, with the rows from `shared` on as one outcome."""
    if logits.shape[-1] == shared:
        joined = F.pad(logits, (0, 1), value=-torch.inf)
    else:
        joined = torch.cat([logits[:, :shared], logits[:, shared:].logsumexp(dim=-1, keepdim=True)], dim=-1)
    return (joined / temperature).log_softmax(dim=-1)


def teacher_outcomes(labels: SparseLabels, temperature: float) -> Tensor:
    """Return the teacher over k + 1 outcomes, tempered and normalised: (positions, k + 1) log-probabilities."""
    outcomes = torch.cat([labels.logprobs, labels.tail_logprob.unsqueeze(-1)], dim=-1)
    return (outcomes / temperature).log_softmax(dim=-1)


def student_outcomes(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Return the student over the teacher's k + 1 outcomes: (positions, V) logits -> (positions, k + 1) log-probabilities.

    `token_ids` are those of `SparseLabels`. A padded entry is -inf and takes no mass from the last outcome.
    """
    missing = token_ids == PAD_TOKEN_ID
    some = token_ids.amax(dim=-1, keepdim=True).clamp(min=0)  # 0 if the position lists no token
    ids = torch.where(missing, some, token_ids)  # padding repeats a listed token; it is masked below
    listed, tail = listed_and_tail(logits, ids)
    listed = listed.masked_fill(missing, -torch.inf)
    # The last step normalises: a shared constant cancels in log_softmax, tempered or not.
    return (torch.cat([listed, tail], dim=-1) / temperature).log_softmax(dim=-1)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sum of weights * values over outcomes, with 0 * anything = 0: (positions, outcomes) -> (positions,).

    The inner `where` keeps infinities out of the backward pass as well.
    """
    possible = weights > 0
    return (weights * torch.where(possible, values, 0.0)).sum(dim=-1)
