"""Select the held-out rows whose prompt every model's chat template renders."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stillhouse.errors import RecipeError, TemplateRefused
from stillhouse.evaluation.measures.measurement_task import ModelToMeasure
from stillhouse.models.files import ModelFiles
from stillhouse.records import Completion

log = logging.getLogger(__name__)


def select_rendered(rows: Sequence[Completion], subjects: Sequence[ModelToMeasure]) -> tuple[Completion, ...]:
    """Return the rows whose prompt every model renders: figures are comparable only on the same prompts.

    Raises:
        RecipeError: a model's chat template rejects the prompts of all remaining rows.
    """
    remaining = tuple(rows)
    for subject in _one_per_template(subjects):
        remaining = _rendered_by(subject, remaining)
    return remaining


def _one_per_template(subjects: Sequence[ModelToMeasure]) -> list[ModelToMeasure]:
    """Return the first model with each distinct chat template."""
    first: dict[str, ModelToMeasure] = {}
    for subject in subjects:
        template = ModelFiles(subject.name, subject.folder).chat_template_sha256
        if template is not None:
            first.setdefault(template, subject)
    return list(first.values())


def _rendered_by(subject: ModelToMeasure, rows: Sequence[Completion]) -> tuple[Completion, ...]:
    from stillhouse.models.load import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(subject.folder, trust_remote_code=subject.trust_remote_code)
    kept, reason = [], ""
    for row in rows:
        try:
            encode_prompt(tokenizer, row.prompt.messages)
        except TemplateRefused as error:
            reason = reason or str(error)
        else:
            kept.append(row)
    if not kept:
        raise RecipeError(
            f"the chat template of the {subject.role} ({subject.folder}) rejects the prompts of all {len(rows)} held-out "
            f"rows ({reason})",
            fix="fix the template, or label prompts that it renders",
        )
    if len(kept) < len(rows):
        log.warning(
            "%d of %d held-out rows are left out of the report: the chat template of the %s rejects their prompts (%s)",
            len(rows) - len(kept),
            len(rows),
            subject.role,
            reason,
        )
    return tuple(kept)
