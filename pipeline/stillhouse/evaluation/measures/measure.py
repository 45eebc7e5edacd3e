"""Measure one model's cost, and collect its answers.

The model first answers prompts one at a time (for latency, tokens per second and memory), then all prompts in batches (for
the answers in the report, their quality and the metrics). It runs in a separate process, so that the peak memory is the
model's alone.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from stillhouse.evaluation.measures.answer_quality import ModelAnswers
from stillhouse.evaluation.measures.bootstrap import ratio_of_sums
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.evaluation.results import Interval
from stillhouse.models.generate import generate
from stillhouse.models.load import LanguageModel, decode_completion, encode_prompt, load_language_model
from stillhouse.student.finished.folder import weight_megabytes


@dataclass(frozen=True)
class ModelMeasurement:
    """The cost and the answers of one model."""

    parameters: int
    megabytes: float  # of the weights on disk, 10^6 bytes
    peak_memory_megabytes: float
    tokens_per_second: Interval
    latency_p50_ms: float
    latency_p95_ms: float
    answers: ModelAnswers  # answers to `task.prompts`


def measure(subject: ModelToMeasure, task: MeasurementTask) -> ModelMeasurement:
    """Load one model, time it, and collect its answers."""
    torch.manual_seed(0)
    trusted = subject.trust_remote_code
    lm = load_language_model(subject.folder, dtype=task.settings.dtype, trust_remote_code=trusted)
    seconds, tokens = _timed_answers(lm, task)
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
    peak = _peak_megabytes(lm.device)
    return ModelMeasurement(
        parameters=sum(parameter.numel() for parameter in lm.model.parameters()),
        megabytes=weight_megabytes(subject.folder),
        peak_memory_megabytes=peak,
        tokens_per_second=ratio_of_sums(tokens, seconds),
        latency_p50_ms=float(p50),
        latency_p95_ms=float(p95),
        answers=_answers(lm, task),
    )


def _timed_answers(lm: LanguageModel, task: MeasurementTask) -> tuple[list[float], list[int]]:
    """Answer prompts one at a time, after a warm-up; return the seconds and the tokens of each."""
    rows = task.rows[: task.settings.latency_prompts]
    prompts = [encode_prompt(lm.tokenizer, row.prompt.messages) for row in rows]
    generate(lm, prompts[:1], max_tokens=2)
    seconds: list[float] = []
    tokens: list[int] = []
    for prompt in prompts:
        began = time.perf_counter()
        tokens.append(len(generate(lm, [prompt], max_tokens=task.max_tokens)[0]))
        seconds.append(time.perf_counter() - began)
    return seconds, tokens


def _answers(lm: LanguageModel, task: MeasurementTask) -> ModelAnswers:
    """Return the model's greedy answers to all prompts, in batches of prompts of similar length."""
    prompts = [encode_prompt(lm.tokenizer, row.prompt.messages) for row in task.prompts]
    by_length = sorted(
        range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True
    )  # longest prompts first
    answers: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(prompts), task.settings.batch_size):
        part = by_length[start : start + task.settings.batch_size]
        written = generate(lm, [prompts[place] for place in part], max_tokens=task.max_tokens)
        for place, tokens in zip(part, written, strict=True):
            answers[place] = tokens
    return ModelAnswers(
        texts=tuple(decode_completion(lm, tokens) for tokens in answers),
        tokens=tuple(len(tokens) for tokens in answers),
        cut=tuple(tokens[-1] not in lm.end_ids for tokens in answers),
    )


def _peak_megabytes(device: torch.device) -> float:
    """Return the peak memory, 10^6 bytes: of the allocator on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
