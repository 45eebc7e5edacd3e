"""Distance of each model from the teacher, token by token, on the teacher's text.

If the teacher runs on this machine, its full distributions over a block of rows are kept in memory while the students are
loaded one after another and compared with them. Otherwise the soft labels stored in the dataset are used. Memory use is one
model plus one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.evaluation.measures.bootstrap import ratio_of_sums
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.evaluation.results import Interval
from stillhouse.models.layout import completion_logits
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.records import Completion
from stillhouse.student.data.batches import Batch, collator, soft_labels_of, tokens_of
from stillhouse.student.data.completion_example import example_of, packed
from stillhouse.student.data.rows import Example
from stillhouse.student.losses.base import student_outcomes, teacher_outcomes
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.vocabulary_map import VocabularyMap

_BATCH = 16  # rows per forward pass
_BLOCK_BYTES = 1 << 30  # of the teacher's distributions in memory at once


@dataclass(frozen=True)
class Distance:
    """One model's distance from the teacher; `None` if a figure cannot be measured."""

    kl: Interval | None  # KL(teacher || model), nats per completion token
    agreement: Interval | None  # share of positions with the same most likely token, 0..1
    perplexity: Interval | None  # on the teacher's text
    lost_mass: Interval | None = None  # share of the teacher's mass on missing tokens, 0..1; None: no token is missing


@dataclass
class _Sums:
    """Sums over the completion tokens, one entry per row."""

    tokens: list[int] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)  # negative log-likelihood of the teacher's tokens, nats
    kl: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)  # teacher's mass on missing tokens, if the vocabulary is reduced


def distances(subjects: Sequence[ModelToMeasure], task: MeasurementTask) -> list[Distance]:
    """Return the distance of each model, in the order of `subjects`; the teacher, if among them, must be first."""
    sums = [_Sums() for _ in subjects]
    for rows in _blocks(task):
        known: list[Tensor | None] = [None] * len(rows)  # teacher's log-probabilities, (tokens, vocabulary) per row
        for subject, total in zip(subjects, sums, strict=True):
            trusted = subject.trust_remote_code
            lm = load_language_model(subject.folder, dtype=task.settings.dtype, trust_remote_code=trusted)
            soft = task.soft and subject.shares_tokenizer
            by_text, vocabulary_map = not subject.shares_tokenizer, subject.vocabulary_map
            examples = [example_of(row, lm, soft=soft, by_text=by_text, vocabulary_map=vocabulary_map) for row in rows]
            for place, (example, logits) in enumerate(zip(examples, _logits(lm, examples), strict=True)):
                logprobs = logits.log_softmax(dim=-1)
                if subject.is_teacher:
                    known[place] = logprobs.cpu()
                _add(total, subject, rows[place], example, logprobs, known[place])
    return [_distance(total, subject) for total, subject in zip(sums, subjects, strict=True)]


def _blocks(task: MeasurementTask) -> Iterator[list[Completion]]:
    """Yield the rows in blocks whose full distributions fit into `_BLOCK_BYTES`."""
    block: list[Completion] = []
    held = 0
    for row in task.rows:
        needed = (row.completion_tokens or task.max_tokens) * task.vocabulary * 4
        if block and held + needed > _BLOCK_BYTES:
            yield block
            block, held = [], 0
        block.append(row)
        held += needed
    yield block


def _logits(lm: LanguageModel, examples: Sequence[Example]) -> Iterator[Tensor]:
    """Yield each row's logits that predict its completion tokens: (completion tokens, vocabulary)."""
    collate = collator(lm.pad_id, lm.start_id)
    for start in range(0, len(examples), _BATCH):
        part = examples[start : start + _BATCH]
        if not any(len(example.completion) for example in part):
            yield from (torch.empty(0, int(lm.model.config.vocab_size), device=lm.device) for _ in part)
            continue
        batch: Batch = {key: tensor.to(lm.device) for key, tensor in collate(part).items()}
        with torch.inference_mode():
            logits = completion_logits(lm.model, tokens_of(batch))
        yield from logits.split([len(example.completion) for example in part])


def _add(
    sums: _Sums, subject: ModelToMeasure, row: Completion, example: Example, logprobs: Tensor, known: Tensor | None
) -> None:
    """Add one row to the sums; `logprobs` are the model's and `known` the teacher's, (completion tokens, vocabulary)."""
    if len(example.completion) == 0:
        return
    targets = torch.tensor(example.completion, dtype=torch.int64, device=logprobs.device)
    sums.tokens.append(len(example.completion))
    sums.surprise.append(-float(logprobs.gather(-1, targets[:, None]).double().sum()))
    if subject.is_teacher or not subject.shares_tokenizer:
        return
    vocabulary_map, trace = subject.vocabulary_map, row.trace
    if known is not None and vocabulary_map is not None:
        kl, agrees, lost = kl_over_reduced_vocabulary(logprobs, known.to(logprobs.device), vocabulary_map)
        sums.lost.append(float(lost.double().sum()))
    elif known is not None:
        kl, agrees = kl_and_agreement(logprobs, known.to(logprobs.device))
    elif example.soft is not None:
        kl, agrees = kl_from_labels(logprobs, example)
        if vocabulary_map is not None and trace is not None and trace.soft is not None:
            likeliest, mass = labels_over_reduced_vocabulary(packed(trace.soft), vocabulary_map)
            agrees = torch.from_numpy(likeliest).to(logprobs.device) == logprobs.argmax(dim=-1)
            sums.lost.append(float(mass.sum()))
    else:
        return
    sums.kl.append(float(kl.double().sum()))
    sums.agreed.append(float(agrees.sum()))


def kl_and_agreement(logprobs: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the KL over the full vocabulary in nats, and whether the most likely token is the same: (positions,) each.

    Both arguments are (positions, vocabulary) log-probabilities. Columns beyond the tokenizer's last token are padding; one
    of the two models may have more of them.
    """
    shared = min(known.shape[-1], logprobs.shape[-1])
    teacher, student = (each[:, :shared].log_softmax(dim=-1) for each in (known, logprobs))
    return divergence(teacher, student), teacher.argmax(dim=-1) == student.argmax(dim=-1)


def kl_over_reduced_vocabulary(
    logprobs: Tensor, known: Tensor, vocabulary_map: VocabularyMap
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL, agreement and lost mass for a student with a reduced vocabulary: (positions,) each.

    The KL is over the student's tokens, with the teacher's distribution renormalised over them. The teacher's most likely
    token is taken over all its tokens: if the student lacks it, the two do not agree. The lost mass is the teacher's
    probability of all tokens that the student lacks.

    Args:
        logprobs: the student's, (positions, the student's tokens).
        known: the teacher's, (positions, the teacher's tokens).
        vocabulary_map: maps between the teacher's and the student's token ids.
    """
    ids = torch.from_numpy(vocabulary_map.teacher_ids).long().to(known.device)
    both = known[:, ids]  # (positions, the student's tokens)
    kl = divergence(both.log_softmax(dim=-1), logprobs)
    lost = (1 - both.double().logsumexp(dim=-1).exp()).clamp(min=0)
    return kl, known.argmax(dim=-1) == ids[logprobs.argmax(dim=-1)], lost


def labels_over_reduced_vocabulary(
    labels: PackedLabels, vocabulary_map: VocabularyMap
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the labels' most likely token as a student id (-1: missing) and the mass of missing tokens: (positions,) each.

    With top-k labels the mass is a lower bound: it counts listed tokens only, and the tail may contain missing tokens.
    """
    own = vocabulary_map.student_ids(labels.token_ids)
    entries = np.diff(labels.offsets)
    of = np.repeat(np.arange(len(entries)), entries)  # (entries,), the position of each entry
    mass = np.bincount(of, np.where(own < 0, np.exp(labels.logprobs, dtype=np.float64), 0.0), minlength=len(entries))
    order = np.lexsort((-labels.logprobs, of))  # by position, most likely first
    likeliest = np.full(len(entries), -1, dtype=np.int64)
    likeliest[entries > 0] = own[order][labels.offsets[:-1][entries > 0]]
    return likeliest, mass.astype(np.float64)


def kl_from_labels(logprobs: Tensor, example: Example) -> tuple[Tensor, Tensor]:
    """Return KL and agreement from stored soft labels: over their tokens plus one outcome for all others.

    With top-k labels this KL is a lower bound of the KL over the full vocabulary.
    """
    labels = soft_labels_of(collator(0)([example]))
    assert labels is not None
    token_ids = labels.token_ids.to(logprobs.device)
    teacher = teacher_outcomes(labels, 1.0).to(logprobs.device)
    likeliest = token_ids.gather(-1, teacher[:, :-1].argmax(dim=-1, keepdim=True)).squeeze(-1)
    return divergence(teacher, student_outcomes(logprobs, token_ids, 1.0)), likeliest == logprobs.argmax(dim=-1)


def _distance(sums: _Sums, subject: ModelToMeasure) -> Distance:
    if not sums.tokens:  # no row has a completion token
        return Distance(None, None, None)
    perplexity = ratio_of_sums(sums.surprise, sums.tokens, np.exp)
    if subject.is_teacher:
        return Distance(Interval(0.0, 0.0, 0.0), Interval(1.0, 1.0, 1.0), perplexity)
    if not subject.shares_tokenizer:  # perplexities over different tokens are not comparable
        return Distance(None, None, None)
    if not sums.kl:
        return Distance(None, None, perplexity)
    lost = ratio_of_sums(sums.lost, sums.tokens) if sums.lost else None
    return Distance(ratio_of_sums(sums.kl, sums.tokens), ratio_of_sums(sums.agreed, sums.tokens), perplexity, lost)
