"""Tokenizers with some hundred tokens, trained on the spot on the project's own documents: BPE and Unigram."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import CHAT_TEMPLATE
from tests.paths import ROOT

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LINES = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


@cache
def byte_level() -> str:
    """tokenizer.json of a byte-level BPE, as GPT-2's, Llama 3's and Qwen's are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A <|end|> $B", special_tokens=[("<|end|>", 0)]
    )
    return str(made.to_str())


@cache
def byte_fallback() -> str:
    """tokenizer.json of a BPE of characters with byte fallback, as Llama 2's and Gemma's are: no word is split off."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *SPECIAL, *BYTES], show_progress=False, max_token_length=12
    )
    made.train_from_iterator(LINES, trainer)
    written = json.loads(made.to_str())
    written["added_tokens"] = [one for one in written["added_tokens"] if one["content"] not in BYTES]
    return json.dumps(written)


@cache
def unigram(*, bytes_too: bool = False) -> str:
    """tokenizer.json of a Unigram, as T5's is; with `bytes_too` an unknown character is written in bytes."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()] if bytes_too else [])
    if not bytes_too:
        made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *SPECIAL]
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(LINES, trainer)
    written = json.loads(made.to_str())
    if bytes_too:
        written["model"] |= {"byte_fallback": True}
        written["model"]["vocab"] += [[byte, 0.0] for byte in BYTES]
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    return json.dumps(written)


KINDS: dict[str, Callable[[], str]] = {
    "byte-level BPE": lambda: byte_level(),
    "BPE with byte fallback": lambda: byte_fallback(),
    "Unigram": lambda: unigram(),
    "Unigram with byte fallback": lambda: unigram(bytes_too=True),
}


def tokenizer_of(written: str, **special: str) -> Any:
    """The tokenizer of a tokenizer.json, as transformers has it."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(written), **special)


def llama(folder: Path, *, layers: int = 2, padding: int = 0, tied: bool = True, tokenizer: str | None = None) -> Path:
    """A small random Llama with a chat template; its embedding has so many rows more than the tokenizer has tokens."""
    import torch

    fast = tokenizer_of(tokenizer or byte_level(), eos_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast) + padding,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=fast.eos_token_id,
        pad_token_id=None,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
