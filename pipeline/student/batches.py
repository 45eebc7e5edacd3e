"""From dataset rows to training batches.

A row becomes an `Example`: the prompt's and the completion's token ids, with the teacher's soft labels at each completion
token. A text-only row is tokenised here, with the student's own tokenizer and chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline.causal import IGNORED, CausalModel, TokenBatch, encode_completion, encode_prompt, token_batch
from pipeline.columns import completion_at
from pipeline.errors import TrainingError
from pipeline.records import Completion, SoftLabels
from pipeline.student.losses.base import SparseLabels

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Example:
    """One row, ready to be laid out with others."""

    prompt: npt.NDArray[np.int32]  # (prompt time,)
    completion: npt.NDArray[np.int32]  # (time,)
    soft: SoftLabels | None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Examples(torch.utils.data.Dataset[Example]):
    """Rows in memory; `too_long` counts those left out because they pass `max_length`."""

    items: tuple[Example, ...]
    too_long: int

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.items[index]


def read_examples(
    batches: Iterable[pa.RecordBatch], causal: CausalModel, *, soft: bool, by_text: bool, max_length: int
) -> Examples:
    """The examples of a split; see `example_of`.

    Raises:
        TrainingError: a row has no soft labels where they are needed, or a token that the student does not know.
    """
    rows = (completion_at(batch, index) for batch in batches for index in range(batch.num_rows))
    made = [example_of(row, causal, soft=soft, by_text=by_text) for row in rows]
    fitting = tuple(example for example in made if len(example) <= max_length)
    return Examples(fitting, too_long=len(made) - len(fitting))


def example_of(row: Completion, causal: CausalModel, *, soft: bool, by_text: bool) -> Example:
    """One row as token ids of this model.

    Args:
        row: from a dataset, with or without token ids.
        causal: the model that is to read it.
        soft: ask for its soft labels too.
        by_text: take the text alone, since the row's token ids are those of another tokenizer.

    Raises:
        TrainingError: as `read_examples` does.
    """
    trace = None if by_text else row.trace
    if trace is None:
        prompt = np.asarray(encode_prompt(causal.tokenizer, row.prompt.messages), dtype=np.int32)
        completion = np.asarray(encode_completion(causal, row.text), dtype=np.int32)
    else:
        prompt, completion = trace.prompt_token_ids, trace.completion_token_ids
    labels = trace.soft if trace is not None and soft else None
    if soft and labels is None:
        raise TrainingError(
            f"row {row.id} has no soft labels: label again with label.soft set, or set student.mode to 'black-box'"
        )
    listed = [prompt, completion] + ([labels.token_ids] if labels else [])
    highest = max(int(ids.max(initial=0)) for ids in listed)
    if highest >= causal.model.config.vocab_size:
        raise TrainingError(
            f"row {row.id} has the token {highest}, and the student knows only {causal.model.config.vocab_size}: "
            "take a student with the teacher's tokenizer"
        )
    return Example(prompt, completion, labels)


class LengthGroups(LengthGroupedSampler):
    """Rows of like lengths side by side, so that little is padded: `train_sampling_strategy: group_by_length`.

    The order is drawn from the seed and the number of the epoch alone, so a resumed training meets the same batches.
    """

    def __init__(self, rows: Examples, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=[len(row) for row in rows.items], generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.generator.manual_seed(self._seed + epoch)


def collator(pad_id: int) -> Callable[[Sequence[Example]], Batch]:
    """Lay examples out as one batch.

    Keys: `input_ids`, `attention_mask`, `labels` (batch, time) as `causal.TokenBatch` has them; for soft labels
    `soft_token_ids`, `soft_logprobs` (batch, longest completion, k) and `soft_tail_logprob` (batch, longest completion),
    which count from each completion's first token and are padded behind its last.
    """

    def collate(examples: Sequence[Example]) -> Batch:
        tokens = token_batch([e.prompt.tolist() for e in examples], [e.completion.tolist() for e in examples], pad_id)
        batch = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "labels": tokens.labels}
        labels = [example.soft for example in examples if example.soft is not None]
        return batch | _padded_labels(labels) if labels else batch

    return collate


def tokens_of(batch: Batch) -> TokenBatch:
    """The token part of a collated batch."""
    return TokenBatch(batch["input_ids"], batch["attention_mask"], batch["labels"])


def soft_labels_of(batch: Batch) -> SparseLabels | None:
    """The soft labels of a collated batch in the order of `causal.completion_logits`, or None for text alone."""
    if "soft_token_ids" not in batch:
        return None
    lengths = (batch["labels"] != IGNORED).sum(dim=1)  # (batch,)
    present = torch.arange(batch["soft_token_ids"].shape[1], device=lengths.device) < lengths[:, None]
    return SparseLabels(
        token_ids=batch["soft_token_ids"][present],
        logprobs=batch["soft_logprobs"][present],
        tail_logprob=batch["soft_tail_logprob"][present],
    )


def _padded_labels(labels: Sequence[SoftLabels]) -> Batch:
    time = max(len(one) for one in labels)
    widest = max(one.k for one in labels)
    if any(one.k != widest for one in labels):
        raise TrainingError("the dataset's rows have soft labels of different k: label it again with one label.soft")
    shape = (len(labels), time, widest)
    token_ids = np.zeros(shape, dtype=np.int64)
    logprobs, tail = np.zeros(shape, dtype=np.float32), np.zeros(shape[:2], dtype=np.float32)
    for row, one in enumerate(labels):
        token_ids[row, : len(one)] = one.token_ids
        logprobs[row, : len(one)] = one.logprobs
        tail[row, : len(one)] = one.tail_logprob
    return {
        "soft_token_ids": torch.from_numpy(token_ids),
        "soft_logprobs": torch.from_numpy(logprobs),
        "soft_tail_logprob": torch.from_numpy(tail),
    }
