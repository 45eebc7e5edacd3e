"""Find the teacher's tokens that a dataset uses: `used_tokens(dataset, lm)`. Also yields its tokenised texts, for checks.

Used are the tokens

- of all prompts, completions and references of all splits, as the teacher's tokenizer and chat template produce them;
- of all prompts and completions as recorded: a teacher that samples may spell a word in other tokens than its tokenizer
  would;
- of the training split's soft labels, if they have at least the probability `LIKELY` at some position or, for random draws,
  were drawn at least `DRAWN` times at one. A single draw says little: the tail is drawn too, and would keep every token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.dataset.columns import prompt_at, text_of_turns
from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.encodings.base import flatten_column
from stillhouse.dataset.reader import SplitReader
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TemplateRefused
from stillhouse.models.load import LanguageModel, encode_completion, encode_prompt
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import SPLITS, Prompt

LIKELY = 0.001  # probability at one position
DRAWN = 2  # times at one position

_TEXT = ("id", "prompt", "completion", "reference")
_TOKENS = ("prompt_token_ids", "completion_token_ids")


@dataclass(frozen=True)
class TokenisedText:
    """One text of a dataset with its tokens by a model's tokenizer."""

    row: str  # the row's id
    what: str  # prompt, completion or reference
    text: str
    token_ids: list[int]


def tokenised_texts(dataset: Dataset, lm: LanguageModel) -> Iterator[TokenisedText]:
    """Yield every prompt, completion and reference of a dataset with its tokens, in the dataset's order.

    A prompt shared by consecutive rows is yielded once.
    """
    for table in _tables(dataset, _TEXT):
        before = None
        for row in range(table.num_rows):
            name, prompt = table["id"][row].as_py(), prompt_at(table, row)
            if prompt != before:
                if (ids := _prompt_ids(lm, prompt)) is not None:
                    yield TokenisedText(name, "prompt", prompt.text, ids)
                if prompt.reference is not None:
                    ids = encode_completion(lm, prompt.reference)
                    yield TokenisedText(name, "reference", prompt.reference, ids)
            text = text_of_turns(table["completion"][row].as_py())
            yield TokenisedText(name, "completion", text, encode_completion(lm, text))
            before = prompt


def _prompt_ids(lm: LanguageModel, prompt: Prompt) -> list[int] | None:
    """Return the tokens of a prompt; None if the chat template refuses it: no student learns from that row either."""
    try:
        return encode_prompt(lm.tokenizer, prompt.messages)
    except TemplateRefused:
        return None


def used_tokens(dataset: Dataset, lm: LanguageModel, vocabulary: int) -> npt.NDArray[np.int32]:
    """Return the ids of all tokens that a dataset uses, ascending; see the module's docstring.

    Args:
        dataset: a dataset labelled with this model's tokenizer, or as text alone.
        lm: a model with the teacher's tokenizer.
        vocabulary: rows of the model's embedding; ids from this number on cannot be kept.
    """
    used = np.zeros(vocabulary, dtype=bool)
    for text in tokenised_texts(dataset, lm):
        _mark(used, np.array(text.token_ids, dtype=np.int32))
    if dataset.manifest.soft is not None:
        for table in _tables(dataset, _TOKENS):
            for column in _TOKENS:
                _mark(used, flatten_column(table, column))
        for ids in _labelled(dataset, dataset.manifest.soft):
            _mark(used, ids)
    return np.flatnonzero(used).astype(np.int32)


def _mark(used: npt.NDArray[np.bool_], ids: npt.NDArray[np.int32]) -> None:
    used[ids[ids < len(used)]] = True


def _labelled(dataset: Dataset, soft: SoftSettings) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the ids to which the training split's soft labels give enough mass."""
    encoding = find_encoding(soft.encoding)
    least = LIKELY if soft.draws is None else (DRAWN - 0.5) / soft.draws
    reader = SplitReader(dataset, "train", encoding.columns)
    for number in range(len(reader.groups)):
        labels = encoding.decode(reader.read(number))
        yield labels.token_ids[labels.logprobs >= math.log(least)]


def _tables(dataset: Dataset, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    for split in SPLITS:
        reader = SplitReader(dataset, split, columns)
        for number in range(len(reader.groups)):
            yield reader.read(number)
