"""Cut a tokenizer down to some of its tokens, without changing the tokens of any text that uses only these.

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = tokens_to_keep(tokenizer, used)    # plus characters, special tokens and parts that merges need: ascending ids
    smaller = cut_tokenizer(tokenizer, kept)  # token kept[i] has the id i

Byte-level BPE, and BPE with byte fallback. BPE repeatedly merges the adjacent pair of lowest rank. All merges of kept
tokens are kept, including every merge that builds a kept token from its characters. Claim: a text whose tokens are all kept
has the same tokens under the kept merges.

- The merges inside one token of a text are those that build this token on its own. A merge never crosses the boundary of a
  final token. The next merge inside the token has the lowest rank in the whole text when it is applied, so it has the
  lowest rank inside the token too, and other tokens do not influence the merges inside this one.
- So every merge that the text needs is kept. At each step the pairs that can be merged are a subset of those of the full
  list; the lowest of the full list is in this subset, and is therefore its lowest too. At the end the full list has no pair
  left to merge, so a subset has none either.

A word that is looked up whole in the vocabulary (`ignore_merges`) is a kept token; a word that was not in the vocabulary
before is not in it now.

Unigram takes the path of the highest score. All pieces of the best path are kept, paths are only removed, and scores do not
change, so it is the best path again; of two paths with equal scores the same one wins, because pieces are tried in the same
order. An unknown character costs the lowest score minus a constant, and only if no piece is this one character: the piece
with the lowest score and all pieces of one character are therefore kept.

Any other text is tokenised with the remaining pieces; every character and byte that had a token before still has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Tokenizer = dict[str, Any]  # tokenizer.json
TokenIds = npt.NDArray[np.int32]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LISTS_OF_TOKENS = {
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "forced_decoder_ids",
}
_CAN_BE = "byte-level BPE, BPE with byte fallback and Unigram can be cut"


def why_uncuttable(tokenizer: Tokenizer) -> str | None:
    """Return why a tokenizer cannot be cut, naming its kind; None if it can."""
    model = tokenizer["model"]
    kind = _kind(model)
    if kind == "Unigram":
        return None
    if kind != "BPE":
        return f"its tokenizer is {kind}, and only {_CAN_BE}"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return f"its tokenizer is BPE that marks where words begin or end, and only {_CAN_BE}"
    if model.get("dropout"):
        return f"its tokenizer is BPE that leaves out merges at random (dropout {model['dropout']}), and only {_CAN_BE}"
    if not _byte_level(tokenizer) and not _byte_fallback(model):
        return f"its tokenizer is BPE of characters without byte fallback, and only {_CAN_BE}"
    return None


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the id of every token, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    listed = {piece: number for number, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return listed | {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or []}


def tokens_to_keep(tokenizer: Tokenizer, used: Iterable[int]) -> TokenIds:
    """Return the ids to keep so that texts of the `used` tokens are tokenised as before: ascending, (kept,).

    Besides the used tokens, these are single characters and bytes, added and special tokens, the unknown token, and for BPE
    the tokens from which they are merged, for Unigram the piece with the lowest score. An id without a token is dropped.
    """
    model = tokenizer["model"]
    ids = token_ids(tokenizer)
    texts = {number: text for text, number in ids.items()}
    kept = {number for number in used if number in texts}
    kept |= {number for text, number in ids.items() if len(text) == 1 or _BYTE.fullmatch(text)}
    kept |= {added["id"] for added in tokenizer.get("added_tokens") or []}
    kept |= set(_named_ids(tokenizer.get("post_processor")))
    if _kind(model) == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores))} | ({model["unk_id"]} if model.get("unk_id") is not None else set())
    else:
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        made = {part for number in tuple(kept) for part in merged_from(texts[number], ranks)}
        kept |= {ids[part] for part in made | {model.get("unk_token")} if part in ids}
    return np.array(sorted(kept & texts.keys()), dtype=np.int32)


def merged_from(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Return the tokens that BPE builds on the way from a token's characters to the token itself.

    Empty if merging ends elsewhere: such a token is added, or looked up whole, and no text gets it by merges.
    """
    parts, made = list(token), []
    while len(parts) > 1:
        mergeable = [(ranks[pair], index) for index, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not mergeable:
            return []
        _, index = min(mergeable)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
        made.append(parts[index])
    return made


def cut_tokenizer(tokenizer: Tokenizer, kept: TokenIds) -> Tokenizer:
    """Return the tokenizer with only the tokens `kept`, numbered by their position in it.

    Args:
        tokenizer: a tokenizer for which `why_uncuttable` returns None.
        kept: ascending ids of existing tokens.
    """
    new = {old: number for number, old in enumerate(kept.tolist())}
    cut = dict(tokenizer)
    cut["model"] = _cut_model(tokenizer["model"], new)
    cut["added_tokens"] = [
        {**added, "id": new[added["id"]]} for added in tokenizer.get("added_tokens") or [] if added["id"] in new
    ]
    cut["post_processor"] = _with_new_ids(tokenizer.get("post_processor"), new)
    if (padding := tokenizer.get("padding")) is not None:
        cut["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    return cut


def _cut_model(model: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    if _kind(model) == "Unigram":
        pieces = [piece for number, piece in enumerate(model["vocab"]) if number in new]
        unknown = model.get("unk_id")
        return {**model, "vocab": pieces, "unk_id": None if unknown is None else new[unknown]}
    vocab = {token: new[number] for token, number in model["vocab"].items() if number in new}
    merges = [
        merge
        for merge, (left, right) in zip(model["merges"], _merges(model), strict=True)
        if left in vocab and right in vocab and left + right in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges}


def _kind(model: dict[str, Any]) -> str:
    """Return the model's type; files of old versions do not name it."""
    if kind := model.get("type"):
        return str(kind)
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs by rank; library versions differ in writing them as "a b" or ["a", "b"]."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def _byte_level(tokenizer: Tokenizer) -> bool:
    return "ByteLevel" in {*_types(tokenizer.get("pre_tokenizer")), *_types(tokenizer.get("normalizer"))}


def _byte_fallback(model: dict[str, Any]) -> bool:
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))


def _types(part: Any) -> Iterable[str]:
    """Yield the types of a normalizer or pre-tokenizer and of all members if it is a sequence."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for nested in [*(part.get("normalizers") or []), *(part.get("pretokenizers") or [])]:
            yield from _types(nested)


# --------------------------------------------------------------------------------------------- ids in post-processors


def _named_ids(part: Any) -> Iterable[int]:
    """Yield the ids that a post-processor adds to texts."""
    if isinstance(part, dict):
        for special in (part.get("special_tokens") or {}).values():
            yield from special["ids"]
        yield from (part[key][1] for key in ("sep", "cls") if key in part)
        for nested in part.get("processors") or []:
            yield from _named_ids(nested)


def _with_new_ids(part: Any, new: dict[int, int]) -> Any:
    """Return a post-processor with its ids renumbered."""
    if not isinstance(part, dict):
        return part
    result = dict(part)
    if part.get("special_tokens"):
        result["special_tokens"] = {
            name: {**special, "ids": [new[number] for number in special["ids"]]}
            for name, special in part["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if key in part:
            result[key] = [part[key][0], new[part[key][1]]]
    if "processors" in part:
        result["processors"] = [_with_new_ids(nested, new) for nested in part["processors"]]
    return result


# ------------------------------------------------------------------------------------------------- ids in configs


def named_tokens(settings: dict[str, Any]) -> set[int]:
    """Return the special tokens that a config or generation config names, as in `eos_token_id`, nested configs included."""
    found: set[int] = set()
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= named_tokens(value)
        elif str(key).endswith(("token_id", "token_ids")):
            found |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}
    return found


def renumbered_settings(settings: dict[str, Any], kept: Sequence[int] | TokenIds) -> dict[str, Any]:
    """Return a config's or a generation config's settings with token ids renumbered, nested configs included.

    A token that is not kept has no id any more: it becomes None, or is dropped from a list.
    """
    new = {int(old): number for number, old in enumerate(kept)}
    return {key: _renumbered(key, value, new) for key, value in settings.items()}


def _renumbered(key: str, value: Any, new: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return {name: _renumbered(str(name), nested, new) for name, nested in value.items()}
    if not key.endswith(("token_id", "token_ids")) and key not in _LISTS_OF_TOKENS:
        return value
    if isinstance(value, list):
        return _renumbered_list(key, value, new)
    return value if value is None else new.get(value)


def _renumbered_list(key: str, listed: list[Any], new: dict[int, int]) -> list[Any]:
    if key == "forced_decoder_ids":  # [[position, token], ...]
        return [[position, new[token]] for position, token in listed if token in new]
    if any(isinstance(one, list) for one in listed):  # words of several tokens, which need all of them
        return [[new[token] for token in word] for word in listed if all(token in new for token in word)]
    return [new[token] for token in listed if token in new]
