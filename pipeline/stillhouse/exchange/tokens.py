"""Convert a dataset's columns to rows of token ids with soft labels, and such rows back to conversations.

Both directions use the layout of formats that train on tokens: `input_ids` is the prompt followed by the completion, and
row j of the labels is the distribution of input_ids[j + 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.dataset.encodings import Encoding, find_encoding, pad_entries
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TemplateRefused, UsageError
from stillhouse.inputs.user_files import decode_text, parse_json
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import Message, Prompt, SampledLabels, SoftLabels

_MAX_TURNS = 9  # of the user, in one prompt
_NO_MASS = 1e-6  # a tail mass below this is rounding error

TokenIds = npt.NDArray[np.int32]


# ---------------------------------------------------------------------------------------------------------------- export


@dataclass(frozen=True)
class TokenRow:
    """One row's tokens, and the teacher's distribution of each completion token."""

    prompt: TokenIds  # (prompt time,)
    completion: TokenIds  # (time,)
    token_ids: TokenIds  # (time, widest), padded with 0
    logprobs: npt.NDArray[np.float32]  # (time, widest), padded with -inf
    valid: npt.NDArray[np.bool_]  # (time, widest), False for padding

    @property
    def input_ids(self) -> TokenIds:
        return np.concatenate([self.prompt, self.completion])


def soft_encoding(dataset: Dataset, to: str) -> Encoding[Any]:
    """Return the encoding of the dataset's soft labels.

    Raises:
        UsageError: the dataset has no soft labels, or they are from an encoder-decoder, whose rows are two sequences.
    """
    soft = dataset.manifest.soft
    if soft is not None and dataset.manifest.teacher.encoder_decoder:
        raise UsageError(
            f"the format has prompt and answer in one sequence, and {dataset.manifest.label} was labelled by an "
            "encoder-decoder, whose answers are a separate sequence",
            setting="--to",
            value=to,
            fix="use trl, openai or sharegpt for its text, or read its Parquet files directly",
        )
    if soft is None:
        raise UsageError(
            f"the format requires soft labels, and {dataset.manifest.label} has only text",
            setting="--to",
            value=to,
            fix="use trl, openai or sharegpt, or label again with label.soft",
        )
    return find_encoding(soft.encoding)


def token_columns(encoding: Encoding[Any]) -> tuple[str, ...]:
    """Return the columns that `token_rows` reads."""
    return ("prompt_token_ids", "completion_token_ids", *encoding.columns)


def token_rows(rows: pa.RecordBatch, encoding: Encoding[Any]) -> Iterator[TokenRow]:
    """Yield the rows that have soft labels, in order."""
    packed = encoding.decode(rows)
    counts = pc.fill_null(pc.list_value_length(rows.column(encoding.columns[0])), 0).to_numpy()
    ends = np.cumsum(counts)
    for index, (count, end) in enumerate(zip(counts, ends, strict=True)):
        if not count:
            continue
        bounds = packed.offsets[end - count : end + 1]
        entries = slice(bounds[0], bounds[-1])
        padded = pad_entries(packed.token_ids[entries], packed.logprobs[entries], np.diff(bounds), no_token=0)
        prompt, completion = (
            rows.column(name)[index].values.to_numpy(zero_copy_only=False).astype(np.int32)
            for name in ("prompt_token_ids", "completion_token_ids")
        )
        yield TokenRow(prompt, completion, *padded)


def to_arrow_lists(arrays: Sequence[npt.NDArray[Any]], type_: pa.DataType) -> pa.Array:
    """Convert arrays to Arrow lists (1-D) or lists of lists (2-D), one per array, without a Python object per number."""
    depth = 2 if pa.types.is_list(type_.value_type) else 1
    values = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.zeros(0)
    inner = type_.value_type.value_type if depth == 2 else type_.value_type
    flat = pa.array(values.astype(inner.to_pandas_dtype()), inner)
    if depth == 2:
        widths = np.concatenate([np.full(len(array), array.shape[1]) for array in arrays]) if arrays else np.zeros(0)
        flat = pa.ListArray.from_arrays(_offsets(widths), flat)
    return pa.ListArray.from_arrays(_offsets([len(array) for array in arrays]), flat)


def _offsets(lengths: Sequence[int] | npt.NDArray[Any]) -> pa.Array:
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return pa.array(bounds.astype(np.int32))


# ---------------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class PromptDecoder:
    """A tokenizer that converts token ids back to conversations."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | None, format_: str) -> PromptDecoder:
        """Return the tokenizer in a folder.

        Raises:
            UsageError: `folder` is None.
        """
        if folder is None:
            raise UsageError(
                f"the format {format_} has token ids and no text",
                setting="--tokenizer",
                fix="name the tokenizer that produced them: --tokenizer path/to/the/teacher",
            )
        return cls(folder)

    @cached_property
    def _tokenizer(self) -> Any:
        from stillhouse.models.find import find_model
        from stillhouse.models.load import load_tokenizer

        return load_tokenizer(find_model(str(self.folder), setting="--tokenizer", weights=False).folder)

    def prompt(self, token_ids: Sequence[int]) -> Prompt | None:
        """Return the conversation that the chat template encodes to exactly these ids; None if there is none."""
        from stillhouse.models.load import encode_prompt

        templated = self._tokenizer.chat_template is not None
        text = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=not templated))
        for roles, pattern in self._patterns if templated else [(("user",), re.compile("(.*)", re.S))]:
            if found := pattern.fullmatch(text):
                turns = [Message(role, content) for role, content in zip(roles, found.groups(), strict=True)]
                if encode_prompt(self._tokenizer, turns) == list(token_ids):
                    return Prompt(tuple(turns))
        return None

    def completion(self, token_ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text of an answer, and whether it ends with an end token."""
        text = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()
        return text, int(token_ids[-1]) in self._end_ids

    @cached_property
    def _end_ids(self) -> set[int]:
        """The end tokens: the tokenizer's, and those in the model's generation config."""
        file = self.folder / "generation_config.json"
        named: Any = parse_json(decode_text(file.read_bytes())).get("eos_token_id") if file.is_file() else None
        listed = named if isinstance(named, list) else [named]
        return {int(one) for one in [self._tokenizer.eos_token_id, *listed] if one is not None}

    @cached_property
    def _patterns(self) -> list[tuple[tuple[Any, ...], re.Pattern[str]]]:
        """The template as a regex for each sequence of roles, longest first: a shorter one would match turns as text."""
        found = []
        for more in reversed(range(_MAX_TURNS)):
            for system in ((), ("system",)):
                roles = (*system, *("user", "assistant") * more, "user")
                if pattern := _pattern(self._tokenizer, roles):
                    found.append((roles, pattern))
        return found


def _pattern(tokenizer: Any, roles: Sequence[str]) -> re.Pattern[str] | None:
    from stillhouse.models.load import convert_template_errors

    marks = [f"⟦{number}⟧" for number in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        with convert_template_errors():
            text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateRefused:
        return None  # for instance, the template does not support a system turn
    pieces: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(re.escape(before))
    return re.compile("(.*?)".join([*pieces, re.escape(text)]), re.S)


def build_labels(
    token_ids: TokenIds, logprobs: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], soft: SoftSettings | None
) -> SoftLabels | SampledLabels:
    """Build soft labels from arrays of token ids and log-probabilities.

    Args:
        token_ids, logprobs, valid: (time, widest); entries that are not valid are padding.
        soft: the settings of the labels before the export; None if unknown, then the labels count as top-k.
    """
    if soft is not None and soft.draws is not None:
        return _sampled(token_ids, logprobs, valid, soft.draws)
    k = int(valid.sum(axis=1).min())
    order = np.argsort(np.where(valid, -logprobs, np.inf), axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(logprobs, order, axis=1)
    tail_mass = 1.0 - np.exp(kept.astype(np.float64)).sum(axis=1)
    tail = np.where(tail_mass > _NO_MASS, np.log(np.maximum(tail_mass, _NO_MASS)), -np.inf).astype(np.float32)
    return SoftLabels(np.take_along_axis(token_ids, order, axis=1), kept.astype(np.float16), tail)


def _sampled(
    token_ids: TokenIds, logprobs: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], draws: int
) -> SampledLabels:
    positions = np.nonzero(valid)[0]  # the position of each entry
    ids, counts = token_ids[valid], np.maximum(np.rint(np.exp(logprobs[valid]) * draws), 1).astype(np.int64)
    order = np.lexsort((ids, -counts, positions))  # the most often drawn first, equals by id
    offsets = np.zeros(len(valid) + 1, np.int64)
    np.cumsum(valid.sum(axis=1), out=offsets[1:])
    return SampledLabels(ids[order], counts[order].astype(np.uint16), offsets)


def chosen_logprobs(
    completion: TokenIds, token_ids: TokenIds, logprobs: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the log-probability of each completion token, NaN if its position does not list the token: (time,)."""
    is_own = (token_ids == completion[:, None]) & valid  # (time, widest)
    return np.where(is_own.any(axis=1), logprobs[np.arange(len(is_own)), is_own.argmax(axis=1)], np.nan).astype(
        np.float32
    )


@lru_cache(maxsize=8)
def vocabulary_bits(size: int) -> int:
    """Return the number of bits of the largest token id of a vocabulary."""
    return max(1, (size - 1).bit_length())
