"""Split a language model in two: the part that computes hidden states (decoder, with an encoder if any), and the head.

    parts = split(model)
    hidden = parts.hidden(input_ids, labels, attention_mask=mask)     # (positions, width), where a completion token follows
    logits = parts.head(hidden[:512])                                 # (512, vocabulary) float32

With a vocabulary of 128,000 the logits of a batch need more memory than the model; computed in chunks, only one chunk is in
memory. `split` compares the two parts with the whole model on a few tokens. If a model's logits cannot be computed in
parts, the first part computes them whole and the head is the identity.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.models.layout import at_least_float32, completion_mask

log = logging.getLogger(__name__)

_PROBE = 8  # tokens
_SCALED_IF_TIED = {"umt5", "switch_transformers"}  # relatives of T5 whose configs do not say that they scale


@dataclass(frozen=True)
class Head:
    """A model's output layer with the scaling and capping of its logits: (positions, width) -> (positions, vocabulary)."""

    layer: nn.Module
    factor: float = 1.0
    softcap: float | None = None  # c in c * tanh(logits / c), of Gemma

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return float32 logits, even from a layer in lower precision, or float64."""
        logits: Tensor = at_least_float32(self.layer(hidden))
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


@dataclass(frozen=True)
class Parts:
    """A model's two parts, as `split` returns them."""

    decoder: Callable[..., Any]
    head: Head

    def hidden(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Return the hidden states that predict each completion token, row after row: (completion tokens, width).

        Args:
            input_ids: (batch, time) int64.
            labels: as in `layout.TokenBatch`.
            arguments: the model's other inputs: `attention_mask`, `position_ids`, `decoder_input_ids`.
        """
        states = self.decoder(input_ids=input_ids, use_cache=False, **arguments)[0]  # (batch, time, width)
        mask = completion_mask(labels, arguments.get("decoder_input_ids"))
        selected: Tensor = states[:, : mask.shape[1]][mask]
        return selected


def split(model: PreTrainedModel) -> Parts:
    """Return the two parts of a model; they share its modules."""
    config = model.config.get_text_config()
    layer = model.get_output_embeddings()
    decoder = _encoder_and_decoder(model) if model.config.is_encoder_decoder else model.base_model
    if layer is not None and decoder is not model:
        parts = Parts(
            decoder, Head(layer, factor=logit_factor(config), softcap=getattr(config, "final_logit_softcapping", None))
        )
        if _agree(parts, model):
            return parts
    log.warning(
        "the logits of a %s model cannot be computed in chunks: those of a whole batch are kept in memory",
        config.model_type,
    )
    return Parts(model.forward, Head(nn.Identity()))


def _encoder_and_decoder(model: PreTrainedModel) -> Callable[..., Any]:
    """Return a function that runs encoder and decoder as an encoder-decoder's `forward` does before the head."""
    encoder, decoder = model.get_encoder(), model.get_decoder()

    def encode_and_decode(input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, use_cache: bool) -> Any:
        encoded = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]  # (batch, time, width)
        return decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
        )

    return encode_and_decode


def logit_factor(config: PretrainedConfig) -> float:
    """Return the factor by which a model multiplies its logits."""
    scaled = config.model_type in _SCALED_IF_TIED and config.tie_word_embeddings
    if getattr(config, "scale_decoder_outputs", scaled):  # T5, which scales the hidden states
        return 1 / math.sqrt(config.d_model)
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    return float(scale) / float(getattr(config, "logits_scaling", None) or 1.0)  # Granite


@torch.no_grad()
def _agree(parts: Parts, model: PreTrainedModel) -> bool:
    """Whether the parts compute the model's own logits, on a few tokens."""
    training = model.training
    model.eval()
    try:
        tokens = torch.arange(_PROBE, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
        batch: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = tokens.flip(1)
        logits = at_least_float32(model(**batch, use_cache=False).logits[0])
        whole = logits if model.config.is_encoder_decoder else logits[:-1]
        return torch.allclose(parts.head(parts.hidden(**batch, labels=tokens)), whole, rtol=1e-2, atol=1e-2)
    finally:
        model.train(training)
