"""A cut tokenizer against the whole one: the same tokens for texts that it was cut for, and no text without tokens."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from stillhouse.student.start.tokenizer import (
    cut_tokenizer,
    merged_from,
    named_tokens,
    renumbered_settings,
    token_ids,
    tokens_to_keep,
    why_uncuttable,
)
from tests.conftest import DEMO
from tests.student.start.tokenizers_made import KINDS, LINES, SPECIAL, byte_level, unigram

words = st.sampled_from(sorted({word for line in LINES for word in line.split()}))
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
texts = st.lists(st.one_of(words, anything), max_size=12).map(" ".join)


def check(written: dict[str, Any], used: list[str], other: str) -> None:
    whole = Tokenizer.from_str(json.dumps(written))
    before = [whole.encode(text).ids for text in used]
    kept = tokens_to_keep(written, {number for ids in before for number in ids})
    cut = Tokenizer.from_str(json.dumps(cut_tokenizer(written, kept)))
    assert cut.get_vocab_size() == len(kept) <= whole.get_vocab_size()
    assert [[int(kept[number]) for number in cut.encode(text).ids] for text in used] == before
    mine, theirs = cut.encode(other).ids, whole.encode(other).ids
    assert bool(mine) == bool(theirs)
    assert cut.decode(mine, skip_special_tokens=False) == whole.decode(theirs, skip_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(used=st.lists(texts, max_size=6), other=texts)
def test_texts_that_were_used_have_the_same_tokens_and_any_other_has_some(
    kind: str, used: list[str], other: str
) -> None:
    check(json.loads(KINDS[kind]()), used, other)


@settings(max_examples=60)
@given(used=st.lists(texts, max_size=6), other=texts)
def test_words_that_are_taken_whole(used: list[str], other: str) -> None:
    written = json.loads(byte_level())
    written["model"]["ignore_merges"] = True
    written["model"]["vocab"] |= {"Stillhouse": 900, "Ġstudent": 901, "qxz": 902}  # which no merges make
    check(written, used, other)
    check(written, ["Stillhouse student qxz xqxz"], other)


@pytest.mark.slow
@settings(max_examples=15)
@given(used=st.lists(texts, max_size=20), other=texts)
def test_the_demo_teachers_tokenizer(used: list[str], other: str) -> None:
    check(json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8")), used, other)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_are_the_tokenizer_itself(kind: str) -> None:
    written = json.loads(KINDS[kind]())
    kept = tokens_to_keep(written, token_ids(written).values())
    assert kept.tolist() == [*range(len(token_ids(written)))]
    assert cut_tokenizer(written, kept) == written


def test_what_is_kept_though_no_text_has_it() -> None:
    written = json.loads(byte_level())
    kept = {text for text, number in token_ids(written).items() if number in set(tokens_to_keep(written, []).tolist())}
    assert kept == {*SPECIAL, *pre_tokenizers.ByteLevel.alphabet()}
    scored = json.loads(unigram())
    pieces, kept_ids = scored["model"]["vocab"], tokens_to_keep(scored, []).tolist()
    assert {number for number, (piece, _) in enumerate(pieces) if len(piece) == 1} < set(kept_ids)
    assert min(score for _, score in pieces) == min(pieces[number][1] for number in kept_ids)
    assert scored["model"]["unk_id"] in kept_ids


def test_what_a_token_is_merged_from() -> None:
    ranks = {("l", "o"): 0, ("e", "r"): 1, ("lo", "w"): 2, ("low", "er"): 3, ("w", "e"): 4}
    assert merged_from("lower", ranks) == ["lo", "er", "low", "lower"]
    assert merged_from("lowe", ranks) == []  # merging ends at "low", "e"
    assert merged_from("l", ranks) == []
    written = json.loads(byte_level())
    merges = {tuple(merge): rank for rank, merge in enumerate(written["model"]["merges"])}
    for token in written["model"]["vocab"]:
        made = merged_from(token, merges)
        assert all(part in written["model"]["vocab"] and part in token for part in made)
        assert (made[-1:] == [token]) == (len(token) > 1 and token not in SPECIAL)


def test_ids_around_a_text_are_renumbered() -> None:
    written = json.loads(unigram())
    written["model"]["vocab"][3:3] = [["▁unused▁piece", -9.0]]  # between <unk> and the next special token
    for added in written["added_tokens"]:
        added["id"] += added["id"] >= 3
    processors = [
        written["post_processor"]
        | {
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [4], "tokens": ["<|end|>"]}},
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
        },
        {
            "type": "RobertaProcessing",
            "sep": ["<|end|>", 4],
            "cls": ["</s>", 1],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
    ]
    written["padding"] = {
        "strategy": {"Fixed": 12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 4,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    for processor in (*processors, {"type": "Sequence", "processors": [processors[0]]}):
        written["post_processor"] = processor
        before = Tokenizer.from_str(json.dumps(written)).encode("a")
        kept = tokens_to_keep(written, before.ids)
        cut = cut_tokenizer(written, kept)
        assert kept.tolist()[:4] == [0, 1, 2, 4]
        encoded = Tokenizer.from_str(json.dumps(cut)).encode("a")
        assert encoded.tokens == before.tokens
        assert encoded.ids == [token_ids(cut)[token] for token in encoded.tokens]
        assert encoded.ids[-1] == 3
        assert before.ids[-1] == 4


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1})), "its tokenizer is WordPiece"),
        (Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")), "its tokenizer is WordLevel"),
        (Tokenizer(models.BPE({"a": 0}, [])), "BPE of characters without byte fallback"),
        (Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)), "BPE of characters without byte fallback"),
        (Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")), "marks where words begin or end"),
        (Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)), r"merges at random \(dropout 0.1\)"),
    ],
)
def test_what_cannot_be_cut(tokenizer: Tokenizer, reason: str) -> None:
    found = why_uncuttable(json.loads(tokenizer.to_str()))
    assert found is not None
    assert re.search(reason, found)
    assert "byte-level BPE, BPE with byte fallback and Unigram can be cut" in found


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_cut(kind: str) -> None:
    assert why_uncuttable(json.loads(KINDS[kind]())) is None


def test_settings_with_the_ids_of_the_kept_tokens() -> None:
    given_settings = {
        "eos_token_id": [5, 9, 2],
        "pad_token_id": 5,
        "bos_token_id": 7,
        "forced_bos_token_id": None,
        "suppress_tokens": [1, 5],
        "bad_words_ids": [[2, 5], [1, 5]],
        "forced_decoder_ids": [[1, 9], [2, 1]],
        "max_new_tokens": 5,
        "vocab_size": 12,
        "text_config": {"eos_token_id": 9, "hidden_size": 5},
        "use_cache": True,
    }
    assert named_tokens(given_settings) == {5, 9, 2, 7}
    assert renumbered_settings(given_settings, [2, 5, 9]) == {
        "eos_token_id": [1, 2, 0],
        "pad_token_id": 1,
        "bos_token_id": None,
        "forced_bos_token_id": None,
        "suppress_tokens": [1],
        "bad_words_ids": [[0, 1]],
        "forced_decoder_ids": [[1, 2]],
        "max_new_tokens": 5,
        "vocab_size": 12,
        "text_config": {"eos_token_id": 2, "hidden_size": 5},
        "use_cache": True,
    }
