"""A tiny random model of every family whose widths can be cut, and rows of tokens for it.

model = make("gemma2")      # 3 layers (T5: 3 and 2), 24 hidden channels, 20 neurons, 6 heads of 8 channels in 3 groups
rows = some_rows(model)     # TokenBatches of rows of unlike length
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5Config,
    UMT5Config,
)

from stillhouse.models.layout import IGNORED, TokenBatch, make_token_batch
from stillhouse.models.load import auto_class
from stillhouse.student.start.axes import FAMILIES, Axis, axes_of

VOCABULARY, HIDDEN, NEURONS, HEADS, GROUPS, OF_A_HEAD = 40, 24, 20, 6, 3, 8


def _causal(kind: type[PretrainedConfig], **settings: Any) -> Callable[[], PretrainedConfig]:
    return lambda: kind(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": NEURONS,
            "num_hidden_layers": 3,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
            "head_dim": OF_A_HEAD,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-12,  # so that a norm over fewer channels can be made up for exactly
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": None,
            **settings,
        }
    )


def _t5(kind: type[PretrainedConfig], **settings: Any) -> Callable[[], PretrainedConfig]:
    return lambda: kind(
        **{
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_ff": NEURONS,
            "d_kv": OF_A_HEAD,
            "num_heads": HEADS,
            "num_layers": 3,
            "num_decoder_layers": 2,
            "layer_norm_epsilon": 1e-12,
            "relative_attention_num_buckets": 8,
            "decoder_start_token_id": 0,
            **settings,
        }
    )


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": _causal(LlamaConfig),
    "llama, biases": _causal(LlamaConfig, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "mistral": _causal(MistralConfig, tie_word_embeddings=False),
    "qwen2": _causal(Qwen2Config, head_dim=HIDDEN // HEADS),
    "qwen3": _causal(Qwen3Config),
    "gemma": _causal(GemmaConfig),
    "gemma, untied": _causal(GemmaConfig, tie_word_embeddings=False),
    "gemma2": _causal(Gemma2Config, final_logit_softcapping=5.0, query_pre_attn_scalar=OF_A_HEAD),
    "gemma3_text": _causal(Gemma3TextConfig, query_pre_attn_scalar=OF_A_HEAD),
    "smollm3": _causal(SmolLM3Config, head_dim=HIDDEN // HEADS, no_rope_layer_interval=2),
    "t5": _t5(T5Config),
    "t5, gated": _t5(T5Config, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _t5(MT5Config),
    "umt5": _t5(UMT5Config),
}


def make(family: str, seed: int = 0) -> PreTrainedModel:
    """A model whose every parameter is random, norms and biases included, in evaluation mode and the default precision."""
    config = CONFIGS[family]()
    model = auto_class(config).from_config(config).eval().to(torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    if family == "t5, gated":  # a head of its own, as T5 1.1 lies on a hub
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for name, parameter in model.named_parameters():
        noise = 0.3 * torch.randn(parameter.shape, generator=generator)
        norm = axes_of(name) in ((Axis.HIDDEN,), (Axis.HEAD_DIM,)) and name.endswith(".weight")
        parameter.data = noise + (1.0 - FAMILIES[config.model_type].norm_offset if norm else 0.0)
    return model


def some_rows(model: PreTrainedModel, sizes: Sequence[int] = (3, 2)) -> list[TokenBatch]:
    """The same five rows of unlike length, in batches of these sizes."""
    generator = torch.Generator().manual_seed(7)
    lengths = [(3, 6), (9, 2), (1, 4), (5, 5), (7, 1)]
    rows = [
        tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in pair)
        for pair in lengths
    ]
    start = 0 if model.config.is_encoder_decoder else None
    batches, first = [], 0
    for size in sizes:
        prompts, completions = zip(*rows[first : first + size], strict=True)
        batches.append(make_token_batch(prompts, completions, pad_id=0, start_id=start))
        first += size
    assert first == len(rows)
    return batches


def arguments(batch: TokenBatch) -> dict[str, Any]:
    """What a model's `forward` takes of a batch."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    return given if batch.decoder_input_ids is None else given | {"decoder_input_ids": batch.decoder_input_ids}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """At the places of `some_rows` that hold tokens: (tokens, vocabulary)."""
    batches = some_rows(model)
    return torch.cat([model(**arguments(batch)).logits[_tokens(batch)] for batch in batches])


def _tokens(batch: TokenBatch) -> torch.Tensor:
    return batch.attention_mask.bool() if batch.decoder_input_ids is None else batch.labels != IGNORED
