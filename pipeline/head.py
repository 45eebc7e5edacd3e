"""A causal model in two parts: the decoder, which gives hidden states, and the head, which makes logits of them.

    parts = split(model)
    hidden = parts.hidden(batch)              # (positions, width), of the positions that foretell completion tokens
    logits = parts.head(hidden[:512])         # (512, vocabulary) float32

Over a vocabulary of 128,000 the logits of a batch weigh more than the model: whoever takes them a piece at a time holds
one piece. `split` compares the two parts with the whole model on some tokens; a model whose logits cannot be had in parts
gives them whole, and its head is then the identity.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.causal import IGNORED

log = logging.getLogger(__name__)

_PROBE = 8  # tokens


@dataclass(frozen=True)
class Head:
    """The output layer of a model and what the model does to its logits: (positions, width) -> (positions, vocabulary)."""

    layer: nn.Module
    factor: float = 1.0
    softcap: float | None = None  # c in c * tanh(logits / c), of Gemma

    def __call__(self, hidden: Tensor) -> Tensor:
        """float32, whatever the layer computes in."""
        logits: Tensor = self.layer(hidden).float()
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


@dataclass(frozen=True)
class Parts:
    """See the module's docstring."""

    decoder: Callable[..., Any]
    head: Head

    def hidden(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """The hidden states that foretell each completion token, rows after one another: (completion tokens, width).

        Args:
            input_ids: (batch, time) int64.
            labels: (batch, time) int64, -100 where no completion token stands.
            arguments: what else the decoder takes: `attention_mask`, `position_ids`.
        """
        states = self.decoder(input_ids=input_ids, use_cache=False, **arguments)[0]  # (batch, time, width)
        selected: Tensor = states[:, :-1][labels[:, 1:] != IGNORED]
        return selected


def split(model: PreTrainedModel) -> Parts:
    """The two parts of a model, shared with it."""
    config = model.config.get_text_config()
    layer = model.get_output_embeddings()
    if layer is not None and model.base_model is not model:
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        head = Head(
            layer,
            factor=float(scale) / float(getattr(config, "logits_scaling", None) or 1.0),  # Granite
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        parts = Parts(model.base_model, head)
        if _agree(parts, model):
            return parts
    log.warning("the logits of a %s model cannot be had in parts: they are held whole, in memory", config.model_type)
    return Parts(model.forward, Head(nn.Identity()))


@torch.no_grad()
def _agree(parts: Parts, model: PreTrainedModel) -> bool:
    """Whether the parts give the model's own logits, on some tokens."""
    training = model.training
    model.eval()
    try:
        tokens = torch.arange(_PROBE, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
        whole = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        return torch.allclose(parts.head(parts.hidden(tokens, tokens)), whole, rtol=1e-2, atol=1e-2)
    finally:
        model.train(training)
