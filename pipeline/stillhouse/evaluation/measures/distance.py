"""How far each model stands from the teacher, token by token, on the teacher's own text.

A teacher that runs here reads its text once: its full distributions over a block of rows are held while each student in
turn is loaded and compared with them. Where the teacher is far away, the soft labels that it left in the dataset take its
place. Memory is that of one model and one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.evaluation.measures.bootstrap import mean_per_token
from stillhouse.evaluation.measures.subject import Subject, Task
from stillhouse.evaluation.results import Interval
from stillhouse.models.layout import completion_logits
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.records import Completion
from stillhouse.student.data.batches import Batch, collator, soft_labels_of, tokens_of
from stillhouse.student.data.rows import Example, example_of, packed
from stillhouse.student.losses.base import student_outcomes, teacher_outcomes
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.renumbering import Renumbering

_BATCH = 16  # rows
_BLOCK_BYTES = 1 << 30  # of the teacher's distributions that are held at once


@dataclass(frozen=True)
class Distance:
    """One model against the teacher; `None` where there is no telling."""

    kl: Interval | None  # KL(teacher || model), nats a completion token
    agreement: Interval | None  # share of positions with the same most likely token, 0..1
    perplexity: Interval | None  # on the teacher's text
    lost_mass: Interval | None = None  # share of the teacher's mass on tokens that the model lacks, 0..1; None: has all


@dataclass
class _Sums:
    """Each row's sums over its completion tokens."""

    tokens: list[int] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)  # of the teacher's tokens, nats
    kl: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)  # of the teacher's mass, where the model has a part of its tokens


def distances(subjects: Sequence[Subject], task: Task) -> list[Distance]:
    """The distance of every model, in their order; a teacher among them stands first."""
    sums = [_Sums() for _ in subjects]
    for rows in _blocks(task):
        known: list[Tensor | None] = [None] * len(rows)  # the teacher's log-probabilities, (tokens, vocabulary) a row
        for subject, total in zip(subjects, sums, strict=True):
            trusted = subject.trust_remote_code
            lm = load_language_model(subject.folder, dtype=task.settings.dtype, trust_remote_code=trusted)
            soft = task.soft and subject.shares_tokenizer
            by_text, renumbering = not subject.shares_tokenizer, subject.renumbering
            examples = [example_of(row, lm, soft=soft, by_text=by_text, renumbering=renumbering) for row in rows]
            for place, (example, logits) in enumerate(zip(examples, _logits(lm, examples), strict=True)):
                logprobs = logits.log_softmax(dim=-1)
                if subject.is_teacher:
                    known[place] = logprobs.cpu()
                _add(total, subject, rows[place], example, logprobs, known[place])
    return [_distance(total, subject) for total, subject in zip(sums, subjects, strict=True)]


def _blocks(task: Task) -> Iterator[list[Completion]]:
    """The rows, in parts whose full distributions fit into a block."""
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
    """What the model foretells at each completion token: a tensor (completion tokens, vocabulary) a row."""
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
    sums: _Sums, subject: Subject, row: Completion, example: Example, logprobs: Tensor, known: Tensor | None
) -> None:
    """Count one row; `logprobs` are the model's own, (completion tokens, vocabulary)."""
    if len(example.completion) == 0:
        return
    targets = torch.tensor(example.completion, dtype=torch.int64, device=logprobs.device)
    sums.tokens.append(len(example.completion))
    sums.surprise.append(-float(logprobs.gather(-1, targets[:, None]).double().sum()))
    if subject.is_teacher or not subject.shares_tokenizer:
        return
    renumbering, trace = subject.renumbering, row.trace
    if known is not None and renumbering is not None:
        kl, agrees, lost = against_teacher_of_more(logprobs, known.to(logprobs.device), renumbering)
        sums.lost.append(float(lost.double().sum()))
    elif known is not None:
        kl, agrees = against_teacher(logprobs, known.to(logprobs.device))
    elif example.soft is not None:
        kl, agrees = against_labels(logprobs, example)
        if renumbering is not None and trace is not None and trace.soft is not None:
            likeliest, mass = of_more_tokens(packed(trace.soft), renumbering)
            agrees = torch.from_numpy(likeliest).to(logprobs.device) == logprobs.argmax(dim=-1)
            sums.lost.append(float(mass.sum()))
    else:
        return
    sums.kl.append(float(kl.double().sum()))
    sums.agreed.append(float(agrees.sum()))


def against_teacher(logprobs: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """KL over the full vocabulary, nats, and whether the most likely token is the same: two of (positions,).

    Both: (positions, vocabulary) log-probabilities. Rows past the tokenizer's last token are padding; one of the two may
    have more of them.
    """
    shared = min(known.shape[-1], logprobs.shape[-1])
    teacher, student = (each[:, :shared].log_softmax(dim=-1) for each in (known, logprobs))
    return divergence(teacher, student), teacher.argmax(dim=-1) == student.argmax(dim=-1)


def against_teacher_of_more(logprobs: Tensor, known: Tensor, renumbering: Renumbering) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a student with a part of the teacher's tokens, and the teacher's mass on the others: (positions,) each.

    The KL is over the student's tokens, with the teacher's distribution normalised over them. The most likely token is that
    of all of the teacher's tokens: where the student lacks it, they do not agree.

    Args:
        logprobs: the student's, (positions, the student's tokens).
        known: the teacher's, (positions, the teacher's tokens).
        renumbering: from the one's tokens to the other's.
    """
    ids = torch.from_numpy(renumbering.teacher_ids).long().to(known.device)
    both = known[:, ids]  # (positions, the student's tokens)
    kl = divergence(both.log_softmax(dim=-1), logprobs)
    lost = (1 - both.double().logsumexp(dim=-1).exp()).clamp(min=0)
    return kl, known.argmax(dim=-1) == ids[logprobs.argmax(dim=-1)], lost


def of_more_tokens(
    labels: PackedLabels, renumbering: Renumbering
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Of stored labels the most likely token as the student numbers it, -1 where it is gone, and the mass that is gone.

    Both are (positions,). Of top-k labels that is the listed mass: what their tail may hold of it is not known.
    """
    own = renumbering.student_ids(labels.token_ids)
    entries = np.diff(labels.offsets)
    of = np.repeat(np.arange(len(entries)), entries)  # (entries,), each one's position
    mass = np.bincount(of, np.where(own < 0, np.exp(labels.logprobs, dtype=np.float64), 0.0), minlength=len(entries))
    order = np.lexsort((-labels.logprobs, of))  # by position, most likely first
    likeliest = np.full(len(entries), -1, dtype=np.int64)
    likeliest[entries > 0] = own[order][labels.offsets[:-1][entries > 0]]
    return likeliest, mass.astype(np.float64)


def against_labels(logprobs: Tensor, example: Example) -> tuple[Tensor, Tensor]:
    """The same from stored soft labels: KL over their tokens and one outcome for all others, a lower bound for top-k."""
    labels = soft_labels_of(collator(0)([example]))
    assert labels is not None
    token_ids = labels.token_ids.to(logprobs.device)
    teacher = teacher_outcomes(labels, 1.0).to(logprobs.device)
    likeliest = token_ids.gather(-1, teacher[:, :-1].argmax(dim=-1, keepdim=True)).squeeze(-1)
    return divergence(teacher, student_outcomes(logprobs, token_ids, 1.0)), likeliest == logprobs.argmax(dim=-1)


def _distance(sums: _Sums, subject: Subject) -> Distance:
    if not sums.tokens:  # no row has a completion token
        return Distance(None, None, None)
    perplexity = mean_per_token(sums.surprise, sums.tokens, np.exp)
    if subject.is_teacher:
        return Distance(Interval(0.0, 0.0, 0.0), Interval(1.0, 1.0, 1.0), perplexity)
    if not subject.shares_tokenizer:  # a perplexity over other tokens is another quantity
        return Distance(None, None, None)
    if not sums.kl:
        return Distance(None, None, perplexity)
    lost = mean_per_token(sums.lost, sums.tokens) if sums.lost else None
    return Distance(mean_per_token(sums.kl, sums.tokens), mean_per_token(sums.agreed, sums.tokens), perplexity, lost)
