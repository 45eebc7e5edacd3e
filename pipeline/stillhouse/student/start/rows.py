"""The rows on which importance is measured: the teacher's own completions, evenly spaced over the training split."""

from __future__ import annotations

from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.models.files import ModelFiles
from stillhouse.models.layout import TokenBatch
from stillhouse.models.load import LanguageModel
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.data.batches import collator, tokens_of
from stillhouse.student.data.examples import read_examples
from stillhouse.student.data.vocabulary import has_other_layout, has_other_tokenizer
from stillhouse.student.start.stacks import evenly_spaced

_BATCH = 16  # rows


def measured_rows(
    dataset: Dataset, lm: LanguageModel, files: ModelFiles, student: StudentSettings
) -> tuple[TokenBatch, ...]:
    """Return `student.init.rows` rows in batches of similar length, on the model's device.

    Args:
        dataset: the teacher's completions.
        lm: the teacher.
        files: the teacher's files.
        student: the student's settings: the number of rows, and their maximum length.

    Raises:
        DatasetRefused: the dataset is damaged.
        TrainingError: the training split has no row of at most `student.max_length` tokens.
    """
    by_text = has_other_tokenizer(dataset, files, raise_if_other=False)
    by_text |= has_other_layout(dataset, encoder_decoder=lm.is_encoder_decoder, raise_if_other=False)
    examples = read_examples(dataset, "train", lm, soft=False, by_text=by_text, max_length=student.max_length)
    if len(examples) == 0:
        raise TrainingError(
            f"no training row of dataset {dataset.manifest.label} is that short and has a completion token, so importance "
            "cannot be measured",
            setting="student.max_length",
            value=student.max_length,
            fix="raise it, or set student.init.choose to 'even'",
        )
    chosen = evenly_spaced(min(student.init.rows, len(examples)), len(examples))
    rows = sorted((examples[index] for index in chosen), key=len)
    collate = collator(lm.pad_id, lm.start_id)
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    return tuple(tokens_of(collate(part)).to(lm.device) for part in parts)
