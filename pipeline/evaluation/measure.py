"""Measure one model on the held-out rows, in a process of its own.

A fresh process makes the peak memory the model's alone. It answers prompts one at a time (latency, tokens a second), then
some together (the answers that the report shows), and is then held against the teacher, token by token, on the teacher's
own text.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.causal import (
    CausalModel,
    completion_logits,
    decode_completion,
    encode_prompt,
    generate,
    load_causal_model,
)
from pipeline.config import EvaluateSettings
from pipeline.evaluation.metrics import mean_per_prompt, mean_per_token, token_f1
from pipeline.evaluation.results import Interval, ModelRow
from pipeline.records import Completion
from pipeline.student.batches import Batch, Example, collator, example_of, soft_labels_of, tokens_of
from pipeline.student.losses.base import student_outcomes, teacher_outcomes
from pipeline.student.losses.forward_kl import divergence

_BATCH = 16


@dataclass(frozen=True)
class Subject:
    """One model to be measured."""

    role: str
    name: str  # for the report
    folder: Path
    is_teacher: bool = False


@dataclass(frozen=True)
class Task:
    """What every model is measured on."""

    rows: tuple[Completion, ...]  # held out
    settings: EvaluateSettings
    max_tokens: int  # of an answer
    teacher: Path | None  # a teacher that can be run here gives its full distribution; else the stored labels serve
    soft: bool  # whether the rows have soft labels


@dataclass(frozen=True)
class Measured:
    """One model's line of the report, and its answers to the first `settings.answers` prompts."""

    row: ModelRow
    answers: tuple[str, ...]


Measure = Callable[[Subject, Task], Measured]


@contextmanager
def fresh_processes() -> Iterator[Measure]:
    """Run `measure` in a new process for each model; the libraries are imported once, in the process they fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        yield lambda subject, task: pool.submit(measure, subject, task).result()


def measure(subject: Subject, task: Task) -> Measured:
    """Every figure of one model."""
    torch.manual_seed(0)
    causal = load_causal_model(subject.folder, dtype=task.settings.dtype)
    speed = _speed(causal, task)
    shown = task.rows[: task.settings.answers]
    answers = [row.text for row in shown] if subject.is_teacher else _answers(causal, shown, task.max_tokens)
    peak = _peak_megabytes(causal.device)
    quality = _quality(causal, subject, task)
    row = ModelRow(
        role=subject.role,
        model=subject.name,
        parameters=sum(parameter.numel() for parameter in causal.model.parameters()),
        megabytes=_weight_megabytes(subject.folder),
        peak_memory_megabytes=peak,
        tokens_per_second=speed.tokens_per_second,
        latency_p50_ms=speed.p50_ms,
        latency_p95_ms=speed.p95_ms,
        kl_per_token=quality.kl,
        agreement=quality.agreement,
        perplexity=quality.perplexity,
        reference_score=_reference_score(shown, answers),
    )
    return Measured(row, tuple(answers))


# ----------------------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True)
class _Speed:
    tokens_per_second: float
    p50_ms: float
    p95_ms: float


def _speed(causal: CausalModel, task: Task) -> _Speed:
    """Answer prompts one at a time, after one that warms up."""
    prompts = [
        encode_prompt(causal.tokenizer, row.prompt.messages) for row in task.rows[: task.settings.latency_prompts]
    ]
    generate(causal, prompts[:1], max_tokens=2)
    seconds, tokens = [], 0
    for prompt in prompts:
        began = time.perf_counter()
        tokens += len(generate(causal, [prompt], max_tokens=task.max_tokens)[0])
        seconds.append(time.perf_counter() - began)
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
    return _Speed(tokens / sum(seconds), float(p50), float(p95))


def _answers(causal: CausalModel, rows: Sequence[Completion], max_tokens: int) -> list[str]:
    """The model's most likely answers, several prompts at a time."""
    prompts = [encode_prompt(causal.tokenizer, row.prompt.messages) for row in rows]
    parts = (prompts[start : start + _BATCH] for start in range(0, len(prompts), _BATCH))
    written = [tokens for part in parts for tokens in generate(causal, part, max_tokens=max_tokens)]
    return [decode_completion(causal, tokens) for tokens in written]


def _peak_megabytes(device: torch.device) -> float:
    """Of this process on a CPU, of the allocator on an accelerator: 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _weight_megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)) / 1e6


# --------------------------------------------------------------------------------------------------------------- quality


@dataclass(frozen=True)
class _Quality:
    kl: Interval | None
    agreement: Interval | None
    perplexity: Interval | None


@dataclass(frozen=True)
class _Against:
    """A student's positions against the teacher's."""

    kl: Tensor  # (positions,) nats
    agrees: Tensor  # (positions,) bool


def _quality(causal: CausalModel, subject: Subject, task: Task) -> _Quality:
    """Each row's sums over its completion tokens, then means over rows."""
    teacher = (
        load_causal_model(task.teacher, dtype=task.settings.dtype) if task.teacher and not subject.is_teacher else None
    )
    comparable = not subject.is_teacher and (teacher is not None or task.soft)
    examples = [example_of(row, causal, soft=task.soft) for row in task.rows]
    nll: list[float] = []
    kl: list[float] = []
    agreed: list[float] = []
    for start in range(0, len(examples), _BATCH):
        part = examples[start : start + _BATCH]
        batch = {key: tensor.to(causal.device) for key, tensor in collator(causal.pad_id)(part).items()}
        with torch.inference_mode():
            logits = completion_logits(causal.model, tokens_of(batch))  # (completion tokens, vocabulary)
            targets = tokens_of(batch).targets
            nll += _row_sums(torch.nn.functional.cross_entropy(logits, targets, reduction="none"), part)
            if comparable:
                against = _against_model(logits, teacher, batch) if teacher else _against_labels(logits, batch)
                kl += _row_sums(against.kl, part)
                agreed += _row_sums(against.agrees.double(), part)
    tokens = [len(example.completion) for example in examples]
    exactly = {0.0: Interval(0.0, 0.0, 0.0), 1.0: Interval(1.0, 1.0, 1.0)}
    return _Quality(
        kl=mean_per_token(kl, tokens) if comparable else exactly[0.0] if subject.is_teacher else None,
        agreement=mean_per_token(agreed, tokens) if comparable else exactly[1.0] if subject.is_teacher else None,
        perplexity=mean_per_token(nll, tokens, np.exp),
    )


def _against_model(logits: Tensor, teacher: CausalModel, batch: Batch) -> _Against:
    """KL over the full vocabulary, from the teacher's own logits."""
    known = completion_logits(teacher.model, tokens_of(batch))
    shared = min(known.shape[-1], logits.shape[-1])  # rows past the tokenizer's last token are padding
    log_p, log_q = known[:, :shared].log_softmax(dim=-1), logits[:, :shared].log_softmax(dim=-1)
    return _Against(divergence(log_p, log_q), log_p.argmax(dim=-1) == log_q.argmax(dim=-1))


def _against_labels(logits: Tensor, batch: Batch) -> _Against:
    """KL over the stored tokens and one outcome for all others: a lower bound of the full one."""
    labels = soft_labels_of(batch)
    assert labels is not None
    kl = divergence(teacher_outcomes(labels, 1.0), student_outcomes(logits, labels.token_ids, 1.0))
    return _Against(kl, labels.token_ids[:, 0] == logits.argmax(dim=-1))


def _row_sums(values: Tensor, examples: Sequence[Example]) -> list[float]:
    parts = values.double().split([len(example.completion) for example in examples])
    return [float(part.sum()) for part in parts]


def _reference_score(rows: Sequence[Completion], answers: Sequence[str]) -> Interval | None:
    scored = [
        token_f1(answer, row.prompt.reference)
        for row, answer in zip(rows, answers, strict=True)
        if row.prompt.reference
    ]
    return mean_per_prompt(scored) if scored else None
