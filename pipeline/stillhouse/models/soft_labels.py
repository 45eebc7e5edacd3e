"""Soft labels from a model's logits: the k most likely tokens and the tail mass, or tokens sampled at random.

    collector = label_collector(label.soft, seeds)              # one seed per row
    generate(..., hooks=SoftLabelRecorder(collector).hooks)     # while a teacher generates
    top_k(logits, 32).soft_labels(), sampled(logits, 50, seed)  # when it scores a given text

Log-probabilities are normalised over the full vocabulary at temperature 1, whatever the temperature of generation.

Random labels are drawn by inverse transform sampling (sampling.py). Every row has its own generator, so its draws depend on
its seed and its logits alone, and not on its batch. Logits differ in their last digits between batches of
other shapes, devices and library versions; a draw that close to the boundary between two tokens may then select the other.
Both are draws from the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

from stillhouse.models.generate import GenerationHooks
from stillhouse.models.layout import at_least_float32
from stillhouse.models.sampling import sample_tokens
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import SampledLabels, SoftLabels

_POSITIONS_AT_ONCE = 64  # positions whose cumulative distributions are in memory


@dataclass(frozen=True)
class TopK:
    """`SoftLabels` as tensors."""

    token_ids: Tensor  # (..., k) int64
    logprobs: Tensor  # (..., k) float32, or float64 if the logits are
    tail_logprob: Tensor  # (...) likewise, -inf where k is the whole vocabulary

    def soft_labels(self) -> SoftLabels:
        return SoftLabels(
            token_ids=self.token_ids.cpu().numpy().astype(np.int32),
            logprobs=self.logprobs.cpu().numpy().astype(np.float16),
            tail_logprob=self.tail_logprob.cpu().numpy().astype(np.float32),
        )


def top_k(logits: Tensor, k: int) -> TopK:
    """Return the k largest of log softmax(logits), and the log of the tail mass: logits is (..., vocabulary)."""
    logits = at_least_float32(logits)
    k = min(k, logits.shape[-1])
    normaliser = logits.logsumexp(dim=-1, keepdim=True)  # (..., 1)
    values, ids = logits.topk(k, dim=-1)  # (..., k)
    tail = logits.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)  # summed, not 1 - sum: no cancellation
    return TopK(ids, values - normaliser, tail - normaliser.squeeze(-1))


def sampled(logits: Tensor, draws: int, seed: int) -> SampledLabels:
    """Sample tokens of each position's distribution, with replacement: logits is (time, vocabulary)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        sample_tokens(part, torch.stack([_uniform(draws, generator) for _ in part]))
        for part in logits.split(_POSITIONS_AT_ONCE)
    ]
    return SampledLabels.from_draws(torch.cat(parts).cpu().numpy())


def _uniform(draws: int, generator: torch.Generator) -> Tensor:
    return torch.rand(draws, generator=generator, dtype=torch.float64)


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log softmax(logits) at `tokens`: (..., vocabulary) and (...) -> (...), float32 or float64."""
    logits = at_least_float32(logits)
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


class LabelCollector(Protocol):
    """Collects soft labels from the distributions from which a batch's tokens are sampled."""

    def add(self, logits: Tensor) -> None:
        """Add the next token's logits: (batch, vocabulary), the model's own."""

    def labels(self, row: int, length: int) -> SoftLabels | SampledLabels:
        """Return the labels of the first `length` tokens of one row."""


def label_collector(soft: SoftSettings, seeds: Sequence[int]) -> LabelCollector:
    """Return a collector for the encoding of a recipe; `seeds` has one per row."""
    return _TopKCollector(soft.k) if soft.k else _SampledCollector(soft.draws or 0, seeds)


class _TopKCollector:
    def __init__(self, k: int) -> None:
        self._k = k
        self._steps: list[TopK] = []

    def add(self, logits: Tensor) -> None:
        self._steps.append(top_k(logits, self._k))

    def labels(self, row: int, length: int) -> SoftLabels:
        steps = self._steps[:length]
        return TopK(
            torch.stack([step.token_ids[row] for step in steps]),
            torch.stack([step.logprobs[row] for step in steps]),
            torch.stack([step.tail_logprob[row] for step in steps]),
        ).soft_labels()


class _SampledCollector:
    def __init__(self, draws: int, seeds: Sequence[int]) -> None:
        self._draws = draws
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._steps: list[Tensor] = []  # (batch, draws)

    def add(self, logits: Tensor) -> None:
        uniform = torch.stack([_uniform(self._draws, generator) for generator in self._generators])
        self._steps.append(sample_tokens(logits, uniform))

    def labels(self, row: int, length: int) -> SampledLabels:
        return SampledLabels.from_draws(torch.stack([step[row] for step in self._steps[:length]]).cpu().numpy())


class SoftLabelRecorder:
    """Records, while a model generates, the distribution from which each token is sampled."""

    def __init__(self, collector: LabelCollector) -> None:
        self._collector = collector
        self._logits = torch.empty(0)
        self._chosen: list[Tensor] = []

    @property
    def hooks(self) -> GenerationHooks:
        """Hooks for `generate.generate`: before each draw, ahead of temperature and top-p, and after it."""
        return GenerationHooks(processors=[_BeforeDraw(self)], criteria=[_AfterDraw(self)])

    def before_draw(self, logits: Tensor) -> None:
        """Record the model's own logits, (batch, vocabulary)."""
        self._logits = logits.clone()
        self._collector.add(self._logits)

    def after_draw(self, drawn: Tensor) -> None:
        """Record the sampled tokens, (batch,)."""
        self._chosen.append(chosen_logprobs(self._logits, drawn))

    def labels(self, row: int, length: int) -> tuple[SoftLabels | SampledLabels, np.ndarray]:
        """Return the soft labels and chosen log-probabilities of the first `length` tokens of one row."""
        chosen = torch.stack([step[row] for step in self._chosen[:length]])
        return self._collector.labels(row, length), chosen.cpu().numpy().astype(np.float32)


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
