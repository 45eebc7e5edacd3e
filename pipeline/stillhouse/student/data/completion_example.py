"""One completion in memory as a training example, the same as when it is read from a dataset's files."""

from __future__ import annotations

import pyarrow as pa

from stillhouse.dataset.columns import record_batch
from stillhouse.dataset.encodings import Encoding, PackedLabels, find_encoding
from stillhouse.errors import TrainingError
from stillhouse.models.load import LanguageModel
from stillhouse.records import Completion, SampledLabels, SoftLabels, is_complete
from stillhouse.student.data.rows import LABEL_AGAIN, Example
from stillhouse.student.data.token_ids import refuse_unknown_tokens, student_ids, text_token_ids
from stillhouse.student.data.vocabulary import labels_for_student
from stillhouse.student.vocabulary_map import VocabularyMap


def example_of(
    row: Completion, lm: LanguageModel, *, soft: bool, by_text: bool, vocabulary_map: VocabularyMap | None = None
) -> Example:
    """Return one completion as token ids of this model; the arguments are those of `read_examples`.

    Raises:
        TrainingError: the row lacks the soft labels that are needed, or has a token that the student does not know.
    """
    trace = None if by_text else row.trace
    if trace is None:
        prompt, completion = text_token_ids(lm, row.prompt.messages, row.text, is_complete(row.finish_reason))
    else:
        prompt, completion = student_ids(row.id, trace.prompt_token_ids, trace.completion_token_ids, vocabulary_map)
    labels = None
    if trace is not None and trace.soft is not None and soft:
        vocabulary = int(lm.model.config.vocab_size)
        labels = labels_for_student(packed(trace.soft), vocabulary, _encoding_of(trace.soft).name, vocabulary_map)
    if soft and labels is None:
        raise TrainingError(f"row {row.id} has no soft labels", fix=LABEL_AGAIN)
    refuse_unknown_tokens(row.id, prompt, completion, lm)
    return Example(prompt, completion, labels)


def packed(labels: SoftLabels | SampledLabels) -> PackedLabels:
    """Return the soft labels of one completion in the form read from a file."""
    encoding = _encoding_of(labels)
    return encoding.decode(record_batch([encoding.encode(labels)], pa.schema(encoding.fields)))


def _encoding_of(labels: SoftLabels | SampledLabels) -> Encoding[SoftLabels | SampledLabels]:
    return find_encoding("sampled" if isinstance(labels, SampledLabels) else "top-k")
