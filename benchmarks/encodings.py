"""Measure the encodings of soft labels: size on disk, loss of information, and the gradients that they give.

    python -m benchmarks.encodings --output docs/benchmarks.md

The demo teacher (vocabulary 49,152) runs with teacher forcing along the glossary's references; its full distributions are
the ground truth. A second teacher, with a vocabulary of 151,936, is simulated independently at each position:
log p(id) = s * (a normal draw) - log(id + 2.7) + const, s between 4 and 10. Low ids are more likely, as in a vocabulary of
merges, and 50 draws give about as many distinct tokens as with the demo teacher. Bytes are those of the columns in the
Parquet files that `dataset/writer.py` writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.glossary import GLOSSARY
from benchmarks.shared import ROOT, measured_on, scratch, table, versions_of, write_section
from stillhouse.dataset.columns import completion_row, completion_schema, record_batch
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.encodings.top_k import round_logprobs
from stillhouse.dataset.parquet import write_options
from stillhouse.dataset.writer import Origin, new_version
from stillhouse.models.load import encode_completion, encode_prompt, load_language_model
from stillhouse.models.soft_labels import sampled, top_k
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import Completion, Message, Prompt, SampledLabels, SoftLabels, TeacherIdentity, TokenTrace

MODEL = ROOT / "data/models/smollm2-135m-instruct"
K, DRAWS, LARGE = 50, 50, 151_936
SIMULATED = 6000  # positions
WANTED = {"top-k": 125, "sampled": 40}  # targets, bytes per token
REPEATS = (1, 10, 100, 1000)  # number of estimates averaged per position
GRADIENT_POSITIONS = 48
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """The ground truth at the positions of one completion."""

    logits: Tensor  # (time, vocabulary) float32
    token_ids: npt.NDArray[np.int32]  # (time,)


def demo_texts(limit: int) -> Iterator[Text]:
    """Yield the demo teacher's logits along the references (teacher forcing)."""
    lm = load_language_model(MODEL, device="cpu")
    for number, prompt in enumerate(read_prompts(GLOSSARY)):
        if number == limit:
            return
        asked = encode_prompt(lm.tokenizer, prompt.messages)
        written = encode_completion(lm, prompt.reference or "")
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([[*asked, *written]])).logits[0, len(asked) - 1 : -1]
        yield Text(logits.float(), np.asarray(written, np.int32))


def simulated_texts(positions: int) -> Iterator[Text]:
    """Yield texts of the simulated teacher (see the module's docstring), 40 positions each."""
    random = np.random.default_rng(0)
    common = -np.log(np.arange(LARGE) + 2.7)
    for _ in range(positions // 40):
        sharpness = random.uniform(4, 10, (40, 1))
        logits = torch.from_numpy((common + sharpness * random.standard_normal((40, LARGE))).astype(np.float32))
        yield Text(logits, sampled(logits, 1, int(random.integers(1 << 30))).token_ids)


# --------------------------------------------------------------------------------------------------------------- on disk


class Sizes:
    """Datasets of the same texts, one per encoding."""

    def __init__(self, root: Path, vocabulary: int) -> None:
        self._root = root
        self._vocabulary = vocabulary
        self._rows: dict[str, list[Completion]] = {"top-k": [], "sampled": []}
        self._positions = 0
        self.distinct = 0  # distinct tokens among the draws

    def add(self, number: int, text: Text) -> None:
        kept = sampled(text.logits, DRAWS, number)
        self.distinct += len(kept.token_ids)
        self._rows["top-k"].append(_completion(number, text, top_k(text.logits, K).soft_labels()))
        self._rows["sampled"].append(_completion(number, text, kept))
        self._positions += len(text.token_ids)

    @property
    def positions(self) -> int:
        return self._positions

    def bytes_a_token(self) -> dict[str, tuple[float, float]]:
        """Return, per encoding, bytes per token of the labels' columns, and of the tokens' ids and log-probabilities."""
        found = {}
        for name, rows in self._rows.items():
            soft = SoftSettings(encoding=name)  # type: ignore[arg-type]
            teacher = TeacherIdentity("transformers", "benchmark", vocabulary_size=self._vocabulary)
            schema = completion_schema(soft=soft.encoding)
            with new_version(self._root, name, Origin("import", "benchmark", teacher, soft=soft)) as version:
                for start in range(0, len(rows), 100):
                    part = [completion_row(row, soft=soft.encoding) for row in rows[start : start + 100]]
                    version.add("train", record_batch(part, schema))
            columns = _column_bytes(sorted((self._root / name).rglob("*.parquet")))
            labels = sum(columns[column] for column in find_encoding(soft.encoding).columns)
            trace = columns["completion_token_ids"] + columns["completion_logprobs"]
            found[name] = (labels / self._positions, trace / self._positions)
        return found


def _completion(number: int, text: Text, soft: SoftLabels | SampledLabels) -> Completion:
    chosen = text.logits.log_softmax(-1)[torch.arange(len(text.token_ids)), torch.from_numpy(text.token_ids).long()]
    trace = TokenTrace(np.zeros(1, np.int32), text.token_ids, chosen.numpy(), soft)
    prompt = Prompt((Message("user", f"{number}"),))
    return Completion(f"{number}", prompt, 0, "", "stop", 1, len(text.token_ids), "benchmark", "", trace=trace)


def _column_bytes(files: Sequence[Path]) -> dict[str, int]:
    """Return the compressed bytes of each top-level column."""
    total: dict[str, int] = {}
    for file in files:
        metadata = pq.read_metadata(file)
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(group).column(place)
                name = column.path_in_schema.partition(".")[0]
                total[name] = total.get(name, 0) + column.total_compressed_size
    return total


# ------------------------------------------------------------------------------------------------------------ what is lost


class Errors:
    """KL(true || stored) of ways to store the top k, over k + 1 outcomes and over the whole vocabulary, nats per token."""

    def __init__(self, root: Path) -> None:
        self._file = root / "plain.parquet"
        self._kls: dict[str, list[tuple[float, float]]] = {}
        self._stored: dict[str, list[npt.NDArray[np.float16]]] = {}  # raw bits: bfloat16 has 16, too
        self._tails: dict[str, list[npt.NDArray[np.float32]]] = {}
        self._ids: list[npt.NDArray[np.int32]] = []

    def add(self, text: Text) -> None:
        kept = top_k(text.logits, K)
        values, tail = kept.logprobs, kept.tail_logprob.numpy().astype(np.float64)
        half, brain = values.to(torch.float16), values.to(torch.bfloat16)
        ways = {
            "`top-k`": (round_logprobs(half.numpy()).astype(np.float64), round_logprobs(tail).astype(np.float64)),
            "float16": (half.numpy().astype(np.float64), tail),
            "bfloat16": (brain.float().numpy().astype(np.float64), tail),
        }
        true = text.logits.double().log_softmax(-1).numpy()
        ids = kept.token_ids.numpy()
        for name, (listed, rest) in ways.items():
            self._kls.setdefault(name, []).extend(zip(*_kls(true, ids, listed, rest), strict=True))
        bits = {"`top-k`": round_logprobs(half.numpy()).astype(np.float16), "float16": half.numpy()}
        bits["bfloat16"] = brain.view(torch.int16).numpy().view(np.float16)
        for name, values_ in bits.items():
            self._stored.setdefault(name, []).append(values_)
            self._tails.setdefault(name, []).append(ways[name][1].astype(np.float32))
        self._ids.append(ids.astype(np.int32))

    def rows(self) -> list[list[str]]:
        return [
            [
                name,
                *(f"{self._bytes(name, split=split):.1f}" for split in (False, True)),
                *(f"{np.mean(coarse):.1e}", f"{np.max(coarse):.1e}", f"{np.mean(dense):.3f}"),
            ]
            for name, both in self._kls.items()
            for coarse, dense in [np.array(both).T]
        ]

    def _bytes(self, name: str, *, split: bool) -> float:
        """Return bytes per token of ids, values and tail as in `dataset/parquet.py`; `split`: split values by byte, too."""
        ends = np.arange(0, K * sum(map(len, self._ids)) + 1, K, dtype=np.int32)
        ids, values = (np.concatenate(parts).reshape(-1) for parts in (self._ids, self._stored[name]))
        table = pa.table(
            {
                "top_token_ids": pa.ListArray.from_arrays(ends, pa.array(ids)),
                "top_logprobs": pa.ListArray.from_arrays(ends, pa.array(values, pa.float16())),
                "tail_logprob": pa.array(np.concatenate(self._tails[name]), pa.float32()),
            }
        )
        options = write_options(table) | {"row_group_size": table.num_rows}
        if split:
            options["column_encoding"] |= {"top_logprobs.list.element": "BYTE_STREAM_SPLIT"}
        pq.write_table(table, self._file, **options)
        return sum(_column_bytes([self._file]).values()) / table.num_rows


def _kls(true: Array, ids: npt.NDArray[np.int64], listed: Array, tail: Array) -> tuple[Array, Array]:
    """Return the KL over k + 1 outcomes, and over the vocabulary with the tail mass spread evenly: (time,) each.

    Args:
        true: (time, vocabulary) log-probabilities.
        ids: (time, k) the listed tokens.
        listed: (time, k) the stored log-probabilities of the listed tokens.
        tail: (time,) the stored log of the tail mass.
    """
    total = np.logaddexp(np.logaddexp.reduce(listed, axis=1), tail)
    listed, tail = listed - total[:, None], tail - total
    at = np.take_along_axis(true, ids, axis=1)
    unlisted = true.copy()
    np.put_along_axis(unlisted, ids, -np.inf, axis=1)
    rest = np.logaddexp.reduce(unlisted, axis=1)
    head = (np.exp(at) * (at - listed)).sum(axis=1)
    coarse = head + np.exp(rest) * (rest - tail)
    even = tail - np.log(true.shape[1] - ids.shape[1])
    finite = np.where(np.isfinite(unlisted), unlisted, 0.0)
    return coarse, head + (np.exp(unlisted) * (finite - even[:, None])).sum(axis=1)


# ------------------------------------------------------------------------------------------------------------- the gradient


def gradient_rows(texts: Sequence[Text]) -> list[list[str]]:
    """Return table rows with the angle between the forward KL's gradients from the labels and from the full distribution.

    The gradients are taken as vectors of positions x vocabulary.
    """
    logits = torch.cat([text.logits for text in texts])[:GRADIENT_POSITIONS]
    p = logits.double().softmax(-1).numpy()
    q = (logits / 2).double().softmax(-1).numpy()  # a student less certain than its teacher
    full = q - p
    ids = top_k(logits, K).token_ids.numpy()
    unlisted = p.copy()
    np.put_along_axis(unlisted, ids, 0.0, axis=1)
    rows = []
    mean, done = np.zeros_like(p), 0
    for repeats in REPEATS:
        while done < repeats:
            mean += _estimate(sampled(logits, DRAWS, done), p.shape)
            done += 1
        rows.append(_gradient_row(f"`sampled`, {DRAWS} draws, mean of {repeats}", mean / done, q, full, unlisted > 0))
    for k in (12, K):
        kept = np.zeros_like(p)
        top = ids[:, :k]
        np.put_along_axis(kept, top, np.take_along_axis(p, top, axis=1), axis=1)
        renormalised = kept / kept.sum(axis=1, keepdims=True)
        rows.append(_gradient_row(f"top-{k} renormalised to 1, however often", renormalised, q, full, unlisted > 0))
    true_tail = float(unlisted.sum(axis=1).mean())
    return [*rows, ["the full distribution", "0.0", f"{true_tail:.4f}"]]


def _estimate(labels: SampledLabels, shape: tuple[int, int]) -> Array:
    found = np.zeros(shape)
    places = np.repeat(np.arange(shape[0]), np.diff(labels.offsets))
    found[places, labels.token_ids] = labels.counts / DRAWS
    return found


def _gradient_row(name: str, estimate: Array, q: Array, full: Array, tail: npt.NDArray[np.bool_]) -> list[str]:
    gradient = q - estimate
    cosine = (gradient * full).sum() / np.sqrt((gradient**2).sum() * (full**2).sum())
    degrees = np.degrees(np.arccos(min(1.0, float(cosine))))
    return [name, f"{degrees:.1f}", f"{np.where(tail, estimate, 0).sum(axis=1).mean():.4f}"]


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    sizes, lost, first = [], [], []
    with scratch() as folder:
        for name, texts, vocabulary in (
            ("the demo teacher", demo_texts(20 if small else 311), 49_152),
            ("simulated", simulated_texts(200 if small else SIMULATED), LARGE),
        ):
            datasets = Sizes(folder / name.split()[-1], vocabulary)
            errors = Errors(folder)
            for number, text in enumerate(texts):
                datasets.add(number, text)
                errors.add(text)
                if vocabulary != LARGE and len(first) < 4:
                    first.append(text)
            found = datasets.bytes_a_token()
            for encoding, (labels, trace) in found.items():
                size = f"k = {K}" if encoding == "top-k" else f"{DRAWS} draws"
                entries = K if encoding == "top-k" else datasets.distinct / datasets.positions
                sizes.append(
                    [
                        f"{name}, {vocabulary:,}",
                        f"`{encoding}`, {size}",
                        f"{datasets.positions:,}",
                        f"{entries:.1f}",
                        f"{labels:.1f}",
                        str(WANTED[encoding]),
                        f"{trace:.1f}",
                    ]
                )
            lost += [[f"{name}: {row[0]}", *row[1:]] for row in errors.rows()]
    losses = [f"over {K} + 1, mean", f"over {K} + 1, largest", "over all, mean"]
    headers = ["teacher, vocabulary", "labels", "tokens", "entries a token", "bytes a token", "wanted at most"]
    return "\n\n".join(
        [
            "In the Parquet files on the disk; beside the labels stand each token's own id and log-probability:",
            table([*headers, "id and log-probability"], sizes),
            f"What keeping {K} tokens loses, KL(true || stored) in nats a token: over the {K} tokens and one outcome for "
            "all others (what the losses see), and over the whole vocabulary with the others' mass spread evenly. float16 "
            "and bfloat16 are the same numbers kept as they are, in the same columns with the same Parquet encodings: ids "
            "and tail split by byte, values plain, zstd. *Values split too* is what all three would be if DuckDB read "
            "float16 that is split by byte, which it does not:",
            table(["", "bytes a token", "values split too", *losses], lost),
            f"The forward KL's gradient at {GRADIENT_POSITIONS} positions of the demo teacher, against that of its full "
            f"distribution; the last column is the mass that the labels give to tokens outside the top {K}:",
            table(["labels", "angle, degrees", "mass of the others"], gradient_rows(first)),
            measured_on(versions_of("pyarrow", "numpy", "torch")),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the encodings of soft labels.")
    parser.add_argument("--output", type=Path, help="the Markdown file with the section; without it, only print")
    parser.add_argument("--small", action="store_true", help="few labels: try the script out")
    given = parser.parse_args()
    text = measure(given.small)
    print(text) if given.output is None else write_section("encodings", text, given.output)


if __name__ == "__main__":
    main()
