"""Soft labels out of a model's logits: the k most likely tokens, and the mass of all the others.

Used while a teacher generates (`SoftLabelRecorder`) and when it is forced along a text (`top_k`). Log-probabilities are
normalised over the full vocabulary at temperature 1 whatever is then drawn from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from pipeline.causal import GenerationHooks
from pipeline.records import SoftLabels


@dataclass(frozen=True)
class TopK:
    """`SoftLabels` while they are still tensors."""

    token_ids: Tensor  # (..., k) int64
    logprobs: Tensor  # (..., k) float32
    tail_logprob: Tensor  # (...) float32, -inf where k is the whole vocabulary

    def soft_labels(self) -> SoftLabels:
        return SoftLabels(
            token_ids=self.token_ids.cpu().numpy().astype(np.int32),
            logprobs=self.logprobs.cpu().numpy().astype(np.float16),
            tail_logprob=self.tail_logprob.cpu().numpy().astype(np.float32),
        )


def top_k(logits: Tensor, k: int) -> TopK:
    """The k largest of softmax(logits), and the logarithm of what they leave: logits is (..., vocabulary)."""
    logits = logits.float()
    k = min(k, logits.shape[-1])
    normaliser = logits.logsumexp(dim=-1, keepdim=True)  # (..., 1)
    values, ids = logits.topk(k, dim=-1)  # (..., k)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)  # summed, not 1 - sum: no cancellation
    return TopK(ids, values - normaliser, rest - normaliser.squeeze(-1))


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) at `tokens`: (..., vocabulary) and (...) -> (...) float32."""
    logits = logits.float()
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


class SoftLabelRecorder:
    """Looks on while a model generates, and notes the distribution that each token was drawn from."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._logits = torch.empty(0)
        self._steps: list[TopK] = []
        self._chosen: list[Tensor] = []

    @property
    def hooks(self) -> GenerationHooks:
        """What `causal.generate` calls: before each draw, ahead of temperature and top-p, and after it."""
        return GenerationHooks(processors=[_BeforeDraw(self)], criteria=[_AfterDraw(self)])

    def before_draw(self, logits: Tensor) -> None:
        """`logits` is (batch, vocabulary), the model's own."""
        self._logits = logits.clone()
        self._steps.append(top_k(self._logits, self._k))

    def after_draw(self, drawn: Tensor) -> None:
        """`drawn` is (batch,), the tokens."""
        self._chosen.append(chosen_logprobs(self._logits, drawn))

    def labels(self, row: int, length: int) -> tuple[SoftLabels, np.ndarray]:
        """The soft labels and chosen log-probabilities of the first `length` tokens of one row."""
        steps = self._steps[:length]
        labels = TopK(
            torch.stack([step.token_ids[row] for step in steps]),
            torch.stack([step.logprobs[row] for step in steps]),
            torch.stack([step.tail_logprob[row] for step in steps]),
        ).soft_labels()
        chosen = torch.stack([step[row] for step in self._chosen[:length]])
        return labels, chosen.cpu().numpy().astype(np.float32)


class _BeforeDraw(transformers.LogitsProcessor):
    def __init__(self, recorder: SoftLabelRecorder) -> None:
        self._recorder = recorder

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._recorder.before_draw(scores)
        return scores


class _AfterDraw(transformers.StoppingCriteria):
    def __init__(self, recorder: SoftLabelRecorder) -> None:
        self._recorder = recorder

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        self._recorder.after_draw(input_ids[:, -1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)  # never stop
