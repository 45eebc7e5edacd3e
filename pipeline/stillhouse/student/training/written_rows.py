"""Rows that the student wrote, with what the loss `minillm` needs of each: log-probabilities and advantages.

    rows = WrittenRows(rows, dataset, lm, options, head_chunk=512, max_length=1024)
    rows.example(0, 3).written.advantages

The student runs over its rows once, before the first step. A resumed training does the same with the same start, so its
values are those of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from stillhouse.dataset.encodings.base import flatten_column
from stillhouse.dataset.reader import SplitReader, list_lengths
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.models.head import split
from stillhouse.models.load import LanguageModel
from stillhouse.student.data.batches import collator, tokens_of
from stillhouse.student.data.rows import Example, Rows, Written, row_bounds
from stillhouse.student.data.several import SameRows
from stillhouse.student.losses import minillm

_BATCH = 16  # rows per forward pass
_COLUMN = "completion_logprobs"  # the teacher's, of each token of the completion

Floats = npt.NDArray[np.float32]


def was_written_by_student(dataset: Dataset) -> bool:
    """Whether a student wrote the completions of a dataset, which its teacher has scored."""
    return bool((dataset.manifest.recipe.get("prompts") or {}).get("score_tokens"))


class WrittenRows(SameRows):
    """The training rows of a dataset that a student wrote."""

    def __init__(
        self,
        rows: Rows,
        dataset: Dataset,
        lm: LanguageModel,
        options: minillm.Options,
        *,
        head_chunk: int,
        max_length: int,
    ) -> None:
        """Run the student over all rows of at most `max_length` tokens.

        Raises:
            TrainingError: a row lacks the teacher's log-probabilities of its tokens.
        """
        super().__init__(rows)
        origin = (dataset.manifest.recipe.get("prompts") or {}).get("written_by") or {}
        share = float(origin.get("teacher_share", 0.0))
        self._written: list[list[Written | None]] = []
        reader = SplitReader(dataset, "train", [_COLUMN])
        for number, group in enumerate(rows.groups):
            examples = [rows.example(number, row) for row in range(group.rows)]
            table = reader.read(number)
            lengths = list_lengths(table[_COLUMN])
            if [*lengths] != [len(one.completion) for one in examples]:
                raise TrainingError(
                    f"a row of dataset {dataset.manifest.label} lacks the teacher's log-probabilities of its tokens",
                    fix="label it again, or set another loss than minillm",
                )
            teacher = np.split(flatten_column(table, _COLUMN), row_bounds(lengths)[1:-1])
            fitting = [place for place, one in enumerate(examples) if len(one) <= max_length]
            found: list[Written | None] = [None] * len(examples)
            own = _logprobs(lm, [examples[place] for place in fitting], head_chunk)
            for place, logprobs in zip(fitting, own, strict=True):
                advantages = minillm.advantages(
                    teacher[place].astype(np.float64),
                    logprobs.astype(np.float64),
                    teacher_share=share,
                    length_normalised=options.length_normalised,
                )
                found[place] = Written(logprobs, advantages.astype(np.float32))
            self._written.append(found)

    def example(self, group: int, row: int) -> Example:
        """Return one row of a row group."""
        return replace(super().example(group, row), written=self._written[group][row])


def _logprobs(lm: LanguageModel, examples: Sequence[Example], head_chunk: int) -> Iterator[Floats]:
    """Yield the log-probabilities of each example's completion under a model: (time,)."""
    collate = collator(lm.pad_id, lm.start_id)
    parts = split(lm.model)
    lm.model.eval()
    for start in range(0, len(examples), _BATCH):
        chosen = [replace(one, soft=None) for one in examples[start : start + _BATCH]]
        tokens = tokens_of(collate(chosen)).to(lm.device)
        layout = {} if tokens.decoder_input_ids is None else {"decoder_input_ids": tokens.decoder_input_ids}
        logprobs = []
        with torch.inference_mode():
            hidden = parts.hidden(tokens.input_ids, tokens.labels, attention_mask=tokens.attention_mask, **layout)
            targets = tokens.targets
            for first in range(0, len(targets), head_chunk):
                part = slice(first, first + head_chunk)
                logits = parts.head(hidden[part]).log_softmax(dim=-1)
                logprobs.append(logits.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1))
        bounds = np.cumsum([len(one.completion) for one in chosen])[:-1]
        yield from np.split(torch.cat(logprobs).float().cpu().numpy(), bounds)
