"""Generate a language model's answers: greedy, or sampled with a seed for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from stillhouse.models.layout import left_padded, right_padded
from stillhouse.models.load import LanguageModel
from stillhouse.models.sampling import sample_tokens


@dataclass(frozen=True)
class GenerationHooks:
    """Callbacks that run while a model generates; `SoftLabelRecorder` in soft_labels.py uses them."""

    processors: Sequence[transformers.LogitsProcessor] = ()
    criteria: Sequence[transformers.StoppingCriteria] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. Each prompt has its own seed, so its answer does not depend on its batch."""

    temperature: float  # > 0
    top_p: float
    seeds: Sequence[int]  # one per prompt


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    hooks: GenerationHooks = GenerationHooks(),
) -> list[list[int]]:
    """Continue each prompt; every answer ends with an end token unless it reached `max_tokens`.

    Only the settings given here shape the answers; what the model's own generation_config would add (a repetition
    penalty, top-k) is dropped on loading. Without `sampling` the most likely token is chosen.
    """
    if lm.is_encoder_decoder:
        input_ids, attention_mask = right_padded(prompts, lm.pad_id)
        begin = 1  # after the decoder's start token
    else:
        input_ids, attention_mask = left_padded(prompts, lm.pad_id)
        begin = input_ids.shape[1]
    settings = transformers.GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=lm.end_ids,
        pad_token_id=lm.pad_id,
        decoder_start_token_id=lm.start_id,
    )
    processors = [*hooks.processors, *([_Sampler(sampling)] if sampling else [])]
    with torch.inference_mode():
        output = lm.model.generate(
            input_ids=input_ids.to(lm.device),
            attention_mask=attention_mask.to(lm.device),
            generation_config=settings,
            **caches_for_deep_decoder(lm.model.config),
            logits_processor=transformers.LogitsProcessorList(processors),
            stopping_criteria=transformers.StoppingCriteriaList(hooks.criteria),
        )
    return [_until_end(row[begin:].tolist(), lm.end_ids) for row in output]


def caches_for_deep_decoder(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """Return caches for a T5 whose decoder is deeper than its encoder: transformers (5.23) sizes them by the encoder."""
    if getattr(config, "num_decoder_layers", 0) <= getattr(config, "num_layers", 0):
        return {}
    empty = (transformers.DynamicCache(), transformers.DynamicCache())  # which grow
    return {"past_key_values": transformers.EncoderDecoderCache(*empty)}


class _Sampler(transformers.LogitsProcessor):
    """Samples each row's next token and masks all others.

    Uses inverse transform sampling with one uniform number per row. The library's own sampling draws one for every token of
    the vocabulary (a fifth of the time, measured on a CPU) from one generator for the whole batch.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]
        self._warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_p < 1:
            self._warpers.append(transformers.TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in self._generators]
        token = sample_tokens(self._warpers(input_ids, scores.float()), torch.stack(uniform))  # (batch, 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Cut the padding after the first end token."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]
