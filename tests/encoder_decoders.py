"""Tiny encoder-decoders, made on the spot: T5 and BART with random weights, each with a small real tokenizer.

tiny_t5(tmp_path / "t5", layers=3, decoder_layers=2)          # any text, byte by byte
tiny_t5(tmp_path / "t5", vocabulary=[*LETTERS, *PHONEMES])    # words, which spaces keep apart
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LETTERS = (*"abcdefghijklmnopqrstuvwxyz'",)
PHONEMES = (
    *("AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH").split(),  # noqa: SIM905
)


def tiny_t5(
    folder: Path,
    *,
    layers: int = 2,
    decoder_layers: int = 2,
    width: int = 16,
    vocabulary: Sequence[str] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a T5 of `width`, 2 heads of half that, and a feed-forward twice as wide; `config` changes its config.

    Its tokenizer ends a text with `</s>` (1), and its decoder begins with `<pad>` (0). `vocabulary` None takes bytes.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer(["<pad>", "</s>", "<unk>"], vocabulary, single="$A </s>")
    tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": width // 2,
        "num_heads": 2,
        "d_ff": 2 * width,
        "num_layers": layers,
        "num_decoder_layers": decoder_layers,
        "initializer_factor": 2.0,  # of 1, the library's own, little would depend on the prompt
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        **config,
    }
    torch.manual_seed(seed)
    T5ForConditionalGeneration(T5Config(**settings)).save_pretrained(folder)
    return folder


def tiny_t5_v11(folder: Path, **options: Any) -> Path:
    """Write a T5 of version 1.1, as Flan-T5 is: a head of its own, logits that are not scaled, a gated feed-forward."""
    import torch
    from transformers import T5ForConditionalGeneration

    tiny_t5(folder, tie_word_embeddings=False, feed_forward_proj="gated-gelu", **options)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    generator = torch.Generator().manual_seed(options.get("seed", 0) + 1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def tiny_bart(
    folder: Path,
    *,
    layers: int = 2,
    decoder_layers: int = 2,
    width: int = 16,
    window: int = 64,
    vocabulary: Sequence[str] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a BART with as many learnt positions as its `window`; a text stands between `<s>` (0) and `</s>` (2).

    Its decoder begins with `</s>`, as that of facebook/bart-base does.
    """
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = _tokenizer(["<s>", "<pad>", "</s>", "<unk>"], vocabulary, single="<s> $A </s>")
    tokenizer.save_pretrained(folder)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "max_position_embeddings": window,
        "init_std": 0.3,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        **config,
    }
    torch.manual_seed(seed)
    BartForConditionalGeneration(BartConfig(**settings)).save_pretrained(folder)
    return folder


def _tokenizer(special: Sequence[str], vocabulary: Sequence[str] | None, *, single: str) -> Any:
    """A fast tokenizer with `special` first; `single` is what stands around a text ($A)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted(pre_tokenizers.ByteLevel.alphabet()) if vocabulary is None else vocabulary
    numbered = {token: number for number, token in enumerate([*special, *words])}
    if vocabulary is None:
        core = Tokenizer(models.BPE(vocab=numbered, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(models.WordLevel(vocab=numbered, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, numbered[token]) for token in special if token in single]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
