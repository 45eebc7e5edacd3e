"""DistillKit's compressed logits for offline distillation, in its newer config (`logprob_compressor`).

    input_ids, attention_mask, labels    all rows have one length, as `prepacked: true` requires; padded at the end
    compressed_logprobs                  bytes per position: k little-endian floats, most likely first (exact_k is k)
    bytepacked_indices                   bytes per position: k token ids of ceil(log2 d) bits each, highest bit first

Row j is the distribution of input_ids[j + 1]. With exact_k = k nothing is approximated: top-k labels are float16, sampled
labels float32. DistillKit's own decoder (commit a61c2e7 of March 2026) was run on such a folder and returned the dataset's
values, and its trainer took steps on it; docs/exchange.md describes how to repeat that.

DistillKit masks row j by labels[j], not by labels[j + 1] as a causal model's cross-entropy does. So labels are set exactly
where a distribution is known: from the last prompt token (included) to the second-to-last completion token. The first token
of the answer and its end token are learnt from their distributions. `missing_probability_handling: zero` renormalises over
the k tokens, which is biased for top-k labels; `symmetric_uniform` accounts for the tail mass. Sampled labels sum to one:
`zero` does not change them, and `symmetric_uniform` gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from stillhouse.dataset.encodings import Encoding
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import (
    ExportOptions,
    ExportPlan,
    ImportedAnswer,
    ImportSource,
    Json,
    Read,
    SkippedRow,
    SourceLine,
)
from stillhouse.exchange.lines import read_rows
from stillhouse.exchange.tokens import (
    PromptDecoder,
    TokenRow,
    build_labels,
    chosen_logprobs,
    soft_encoding,
    to_arrow_lists,
    token_columns,
    token_rows,
    vocabulary_bits,
)
from stillhouse.inputs.user_files import decode_text
from stillhouse.records import SPLITS, TokenTrace

CONFIG = "compression_config.yaml"  # DistillKit's name for it
_IGNORED = -100
_PADDING = -60_000  # a log-probability below this is padding: the lowest float16 is -65,504
_FLOATS: dict[str, Any] = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
_NUMBERS, _BYTES = pa.list_(pa.int64()), pa.list_(pa.list_(pa.uint8()))
_SCHEMA = pa.schema(
    [
        pa.field("input_ids", _NUMBERS),
        pa.field("attention_mask", _NUMBERS),
        pa.field("labels", _NUMBERS),
        pa.field("compressed_logprobs", _BYTES),
        pa.field("bytepacked_indices", _BYTES),
    ]
)


@dataclass(frozen=True)
class CompressorConfig:
    """A configuration of DistillKit's `logprob_compressor` without approximation."""

    vocabulary: int  # d
    k: int
    dtype: str  # exact_dtype

    @property
    def bits(self) -> int:
        return vocabulary_bits(self.vocabulary)

    def as_dict(self) -> dict[str, Any]:
        return {
            "d": self.vocabulary,
            "k": self.k,
            "exact_k": self.k,
            "exact_dtype": self.dtype,
            "polynomial_terms": [],
            "term_dtype": "float32",
            "residual_bins": [],
            "delta_encoding": False,
            "error_diffusion": False,
        }

    @classmethod
    def read(cls, data_file: Path) -> CompressorConfig:
        """Read the configuration in the folder of `data_file`.

        Raises:
            UsageError: the configuration cannot be read, or it approximates.
        """
        file = data_file.parent / CONFIG
        try:
            given = yaml.safe_load(decode_text(file.read_bytes()))
            config = cls(int(given["d"]), int(given["k"]), str(given.get("exact_dtype", "float32")))
            exact = int(given["exact_k"]) == config.k and not given.get("delta_encoding", True)
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{file} cannot be read ({error})", fix="copy it from where DistillKit's capture wrote it"
            ) from None
        if not exact or config.dtype not in _FLOATS:
            raise UsageError(
                f"{file} has exact_k {given['exact_k']} with k {config.k}, exact_dtype {config.dtype} and delta_encoding "
                f"{given.get('delta_encoding')}: only rows with exact_k equal to k, without delta encoding and with an "
                f"exact_dtype of {', '.join(_FLOATS)} can be read"
            )
        return config

    def pack(self, token_ids: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Pack token ids (time, k) into (time, bytes)."""
        shifts = np.arange(self.bits - 1, -1, -1)
        spread = (token_ids[:, :, None] >> shifts & 1).astype(np.uint8)  # (time, k, bits)
        return np.packbits(spread.reshape(len(token_ids), -1), axis=1)

    def unpack(self, packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """Unpack (time, bytes) into token ids (time, k)."""
        spread = np.unpackbits(packed, axis=1, count=self.k * self.bits).reshape(len(packed), self.k, self.bits)
        powers = 1 << np.arange(self.bits - 1, -1, -1)
        ids: npt.NDArray[np.int32] = (spread * powers).sum(axis=2).astype(np.int32)
        return ids


class DistillKit:
    """DistillKit's format, see the module's docstring; `Format` in base.py is the protocol."""

    soft = True

    def plan_export(self, dataset: Dataset, options: ExportOptions) -> ExportPlan:
        encoding = soft_encoding(dataset, "distillkit")
        longest, widest, highest = _extents(dataset, encoding)
        vocabulary = max(dataset.manifest.teacher.vocabulary_size or 0, highest + 1)
        config = CompressorConfig(vocabulary, widest, "float16" if encoding.name == "top-k" else "float32")
        length = options.length or longest
        if length < 2:
            raise UsageError("a row needs at least 2 tokens", setting="--length", value=length, fix="use 2 or more")
        return ExportPlan(
            _SCHEMA,
            token_columns(encoding),
            partial(_convert, encoding=encoding, config=config, length=length),
            file_type="parquet",
            only="parquet",  # JSON cannot hold bytes, and DistillKit reads Parquet through `datasets`
            extra_files={
                CONFIG: yaml.safe_dump(config.as_dict(), sort_keys=False).encode(),
                "distillkit.yaml": _example(config, length).encode(),
            },
            notes=(
                f"every row has {length} tokens; distillkit.yaml has the settings that DistillKit's recipe needs for them",
            ),
            why_skipped=f"they are longer than {length} tokens (--length), or have no soft labels",
        )

    def read_rows(self, source: ImportSource) -> Iterator[Read]:
        tokens = PromptDecoder.open(source.tokenizer, "distillkit")
        for file in source.files:
            config = None
            for place, row in read_rows(file):
                if "token_ids" not in row and config is None:
                    config = CompressorConfig.read(file)
                yield _parse_row(row, place, tokens, source, config)


def _extents(dataset: Dataset, encoding: Encoding[Any]) -> tuple[int, int, int]:
    """Return the length of the longest row in tokens, the most entries at a position, and the highest token id."""
    longest = widest = highest = 0
    for entry in dataset.files(*SPLITS):
        with dataset.open(entry) as parquet:
            for rows in parquet.iter_batches(batch_size=64, columns=list(token_columns(encoding))):
                prompts, completions = (rows.column(name) for name in token_columns(encoding)[:2])
                lengths = pc.add(pc.list_value_length(prompts), pc.list_value_length(completions))
                packed = encoding.decode(rows)
                ids = [packed.token_ids, prompts.flatten().to_numpy(), completions.flatten().to_numpy()]
                longest = max(longest, pc.max(lengths).as_py() or 0)
                widest = max(widest, int(np.diff(packed.offsets).max(initial=0)))
                highest = max([highest, *(int(one.max(initial=0)) for one in ids)])
    if not widest:
        raise UsageError(f"{dataset.manifest.label} has no row with soft labels", fix="label again with label.soft")
    return longest, widest, highest


def _convert(rows: pa.RecordBatch, *, encoding: Encoding[Any], config: CompressorConfig, length: int) -> pa.RecordBatch:
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _SCHEMA.names}
    for row in token_rows(rows, encoding):
        if len(row.input_ids) <= length:
            for name, value in _columns(row, config, length).items():
                columns[name].append(value)
    return pa.RecordBatch.from_arrays([to_arrow_lists(columns[one.name], one.type) for one in _SCHEMA], schema=_SCHEMA)


def _columns(row: TokenRow, config: CompressorConfig, length: int) -> dict[str, npt.NDArray[Any]]:
    input_ids = row.input_ids
    padding = (0, length - len(input_ids))
    known = slice(len(row.prompt) - 1, len(input_ids) - 1)
    labels = np.full(length, _IGNORED)
    labels[known] = input_ids[known]
    float_ = np.dtype(_FLOATS[config.dtype])
    token_ids = np.zeros((length, config.k), np.int64)
    logprobs = np.full(
        (length, config.k), np.finfo(float_).min, float_
    )  # finite, since -inf times a probability of 0 is NaN
    logprobs[:, 0] = -1  # a total mass below 1: with a mass of 1, `symmetric_uniform` gives NaN
    order = np.argsort(-row.logprobs, axis=1, kind="stable")
    width = order.shape[1]
    token_ids[known, :width] = np.take_along_axis(row.token_ids, order, axis=1)
    sorted_ = np.take_along_axis(row.logprobs, order, axis=1)
    logprobs[known, :width] = np.maximum(sorted_, np.finfo(float_).min)
    return {
        "input_ids": np.pad(input_ids, padding),
        "attention_mask": np.pad(np.ones(len(input_ids), np.int64), padding),
        "labels": labels,
        "compressed_logprobs": np.ascontiguousarray(logprobs).view(np.uint8).reshape(length, -1),
        "bytepacked_indices": config.pack(token_ids),
    }


def _parse_row(
    row: Json, place: SourceLine, tokens: PromptDecoder, source: ImportSource, config: CompressorConfig | None
) -> Read:
    if row.get("labels") is None:
        raise UsageError(
            f"{place} has no 'labels', so the start of its answer is unknown",
            fix="add the column, with -100 in the prompt",
        )
    labels = np.asarray(row["labels"], np.int64)
    input_ids = np.asarray(row["input_ids"], np.int64).astype(np.int32)
    used = int(np.sum(row["attention_mask"])) if row.get("attention_mask") is not None else len(input_ids)
    learnt = np.flatnonzero(labels != _IGNORED)
    if not len(learnt) or len(learnt) != learnt[-1] - learnt[0] + 1 or learnt[-1] + 2 != used:
        return SkippedRow("other-labels", "labels do not mark one answer up to its second-to-last token", place)
    known = slice(int(learnt[0]), int(learnt[-1]) + 1)
    token_ids, logprobs = _distributions(row, place, known, config)
    valid = logprobs > _PADDING  # all others are padding
    first = known.start + 1
    prompt = tokens.prompt(input_ids[:first].tolist())
    if prompt is None:
        return SkippedRow("other-template", "the tokenizer's chat template cannot produce this prompt", place)
    completion = input_ids[first:used]
    text, ended = tokens.completion(completion.tolist())
    trace = TokenTrace(
        prompt_token_ids=input_ids[:first],
        completion_token_ids=completion,
        completion_logprobs=chosen_logprobs(completion, token_ids, logprobs, valid),
        soft=build_labels(token_ids, logprobs, valid, source.soft),
    )
    return ImportedAnswer(
        prompt,
        text,
        place,
        finish_reason="stop" if ended else "length",
        prompt_tokens=first,
        completion_tokens=len(completion),
        trace=trace,
    )


def _distributions(
    row: Json, place: SourceLine, known: slice, config: CompressorConfig | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return token ids and log-probabilities of the positions `known`, from the compressed or the plain columns."""
    try:
        if "token_ids" in row:
            return np.asarray(row["token_ids"][known], np.int32), np.asarray(row["top_values"][known], np.float32)
        assert config is not None  # `read_rows` loads it at the first such row
        values = np.asarray(row["compressed_logprobs"][known], np.uint8)
        exact = np.ascontiguousarray(values).view(_FLOATS[config.dtype]).reshape(len(values), -1)[:, : config.k]
        return config.unpack(np.asarray(row["bytepacked_indices"][known], np.uint8)), exact.astype(np.float32)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{place} does not match {CONFIG} ({type(error).__name__}: {error})",
            fix=f"put the {CONFIG} that the rows were written with next to them",
        ) from None


def _example(config: CompressorConfig, length: int) -> str:
    parts = {
        "sequence_length": length,
        "dataset": {"train_dataset": {"repo_id": "path/to/this/folder", "split": "train"}, "prepacked": True},
        "teacher": {"kind": "dataset", "logprob_compressor": config.as_dict()},
        "training_args": {"remove_unused_columns": False},
    }
    return "# The settings that DistillKit's recipe needs for this folder.\n" + yaml.safe_dump(parts, sort_keys=False)


FORMAT = DistillKit()
