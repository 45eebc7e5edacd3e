"""The token ids of one row as the student numbers them, and the errors for tokens that the student does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillhouse.errors import TrainingError
from stillhouse.models.load import LanguageModel, encode_completion, encode_prompt
from stillhouse.records import Message
from stillhouse.student.data.rows import Ids
from stillhouse.student.vocabulary_map import VocabularyMap


def text_token_ids(lm: LanguageModel, messages: Sequence[Message], text: str, ended: bool) -> tuple[Ids, Ids]:
    """Tokenise a row's text; the end token is added only if the teacher `ended` its turn."""
    prompt = np.asarray(encode_prompt(lm.tokenizer, messages), dtype=np.int32)
    return prompt, np.asarray(encode_completion(lm, text, ended=ended), dtype=np.int32)


def student_ids(id_: str, prompt: Ids, completion: Ids, vocabulary_map: VocabularyMap | None) -> tuple[Ids, Ids]:
    """Return a row's token ids as the student numbers them.

    Raises:
        TrainingError: the student's vocabulary lacks one of the tokens.
    """
    if vocabulary_map is None:
        return prompt, completion
    for ids in (prompt, completion):
        if len(removed := ids[vocabulary_map.student_ids(ids) < 0]):
            raise removed_token(id_, int(removed[0]), len(vocabulary_map))
    return vocabulary_map.student_ids(prompt), vocabulary_map.student_ids(completion)


def refuse_unknown_tokens(id_: str, prompt: Ids, completion: Ids, lm: LanguageModel) -> None:
    """Refuse a row with a token id for which the model has no embedding.

    Raises:
        TrainingError: the row has such a token.
    """
    vocabulary = int(lm.model.config.vocab_size)
    highest = max(int(ids.max(initial=0)) for ids in (prompt, completion))
    if highest >= vocabulary:
        raise unknown_token(id_, highest, vocabulary)


def removed_token(id_: str, token: int, kept: int) -> TrainingError:
    """Return the error for a teacher's token that was removed from the student's vocabulary of `kept` tokens."""
    return TrainingError(
        f"row {id_} has the teacher's token {token}, which is not among the student's {kept} tokens: its vocabulary "
        "was cut on rows without it",
        fix="set student.init to {from: teacher, vocabulary: used}, to cut it again on this dataset",
    )


def unknown_token(id_: str, token: int, vocabulary: int) -> TrainingError:
    """Return the error for a token id that is not below `vocabulary`, the student's number of tokens."""
    return TrainingError(
        f"row {id_} has the token {token}, and the student has only {vocabulary} tokens",
        fix="use a student with the teacher's tokenizer and an embedding row for each of its tokens",
    )
