"""Generation from a mixture of two models: in each step the next token is drawn from a p + (1 - a) q.

    generate(student, prompts, ..., hooks=GenerationHooks(processors=[TeacherMixture(teacher, prompts, share=0.2)]))

This is the teacher-mixed sampling of MiniLLM (arXiv 2306.08543): the student's text strays less while the student is poor.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from stillhouse.models.generate import caches_for_deep_decoder
from stillhouse.models.layout import at_least_float32, left_padded, right_padded
from stillhouse.models.load import LanguageModel


def fit_width(logits: Tensor, width: int) -> Tensor:
    """Return logits of this width: vocabularies of one tokenizer may have other numbers of padding rows.

    (..., vocabulary) -> (..., width); rows that the model does not have get -inf.
    """
    return F.pad(logits[..., :width], (0, max(0, width - logits.shape[-1])), value=-torch.inf)


class TeacherMixture(transformers.LogitsProcessor):
    """Replaces the student's scores with the log-probabilities of the mixture; for one call of `generate`."""

    def __init__(self, teacher: LanguageModel, prompts: Sequence[Sequence[int]], share: float) -> None:
        """
        Args:
            teacher: a model with the student's tokenizer and layout.
            prompts: those of the call, in its order.
            share: the teacher's share a, between 0 and 1.
        """
        self._teacher = teacher
        self._shares = (float(np.log(share)), float(np.log1p(-share)))
        pad = right_padded if teacher.is_encoder_decoder else left_padded
        ids, mask = (tensor.to(teacher.device) for tensor in pad(prompts, teacher.pad_id))
        self._mask = mask  # of the prompts; for a causal model also of what has been written
        self._cache: Any = caches_for_deep_decoder(teacher.model.config).get("past_key_values")
        self._has_begun = False
        self._encoded: Any = None
        if teacher.is_encoder_decoder:
            with torch.inference_mode():
                self._encoded = teacher.model.get_encoder()(input_ids=ids, attention_mask=mask)
        self._takes_positions = "position_ids" in inspect.signature(teacher.model.forward).parameters

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, time) tokens so far, (batch, vocabulary) student logits -> (batch, vocabulary) log-probabilities."""
        student = at_least_float32(scores).log_softmax(dim=-1)
        teacher = self._next_logits(input_ids.to(self._teacher.device)).to(student)
        teacher = fit_width(teacher, student.shape[-1])
        of_teacher, of_student = self._shares
        return torch.logaddexp(of_teacher + teacher.log_softmax(dim=-1), of_student + student)

    @torch.inference_mode()
    def _next_logits(self, tokens: Tensor) -> Tensor:
        """Return the teacher's logits of the next token: (batch, vocabulary)."""
        new = tokens[:, -1:] if self._has_begun else tokens
        if self._encoded is not None:
            output = self._teacher.model(
                encoder_outputs=self._encoded,
                attention_mask=self._mask,
                decoder_input_ids=new,
                past_key_values=self._cache,
                use_cache=True,
            )
        else:
            if self._has_begun:
                self._mask = F.pad(self._mask, (0, 1), value=1)
            positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -new.shape[1] :]
            output = self._teacher.model(
                input_ids=new,
                attention_mask=self._mask,
                past_key_values=self._cache,
                use_cache=True,
                **({"position_ids": positions} if self._takes_positions else {}),
            )
        self._cache, self._has_begun = output.past_key_values, True
        return at_least_float32(output.logits[:, -1])
