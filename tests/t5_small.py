"""A folder that looks like google-t5/t5-small's: its real config and sizes, random weights, and a tokenizer of its kind.

    t5_small(tmp_path / "t5-small", texts)      # 60.5 million parameters, 242 MB; `**config` changes its config

The tokenizer is trained on `texts` in place: Unigram, `<pad>` 0, `</s>` 1, `<unk>` 2, and at the end `<extra_id_99>` to
`<extra_id_0>`, as T5's has them. It has fewer tokens than the model has rows, as T5's own does (32,100 of 32,128).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {  # config.json of google-t5/t5-small
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {
        "summarization": {
            "early_stopping": True,
            "length_penalty": 2.0,
            "max_length": 200,
            "min_length": 30,
            "no_repeat_ngram_size": 3,
            "num_beams": 4,
            "prefix": "summarize: ",
        },
        **{
            f"translation_en_to_{code}": {
                "early_stopping": True,
                "max_length": 300,
                "num_beams": 4,
                "prefix": f"translate English to {language}: ",
            }
            for code, language in (("de", "German"), ("fr", "French"), ("ro", "Romanian"))
        },
    },
    "vocab_size": 32128,
}
GENERATION = {"_from_model_config": True, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
TEXTS = (
    "summarize: The kettle was on the stove when the storm came in from the sea and the lights went out.",
    "translate English to German: The house is wonderful, and the garden behind it is not.",
    "A violin, a tram and an otter: 3 of 12 words that nobody had written down before.",
)


def t5_small(folder: Path, texts: Sequence[str] = TEXTS, *, tokens: int = 256, seed: int = 0, **config: Any) -> Path:
    """Write the model's folder.

    Args:
        folder: is made where it is not there.
        texts: what the tokenizer is trained on; characters that are not among them become `<unk>`.
        tokens: of the tokenizer at most, its special ones and the `<extra_id_n>` besides.
        seed: of the weights.
        config: changes of the config, such as `num_layers=1, d_ff=64` for a smaller one.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    t5_tokenizer(folder, texts, tokens=tokens)
    settings = CONFIG | config
    torch.manual_seed(seed)
    T5ForConditionalGeneration(T5Config.from_dict(settings)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")  # as it is on the hub, not as saved anew
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    return folder


def t5_tokenizer(folder: Path, texts: Sequence[str] = TEXTS, *, tokens: int = 256) -> Any:
    """Train and write a tokenizer of T5's kind; see `t5_small`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=tokens, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{number}>" for number in reversed(range(100))],
        model_max_length=512,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
