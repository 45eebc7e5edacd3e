"""Train students with the same initial weights, data and steps on more or less of the teacher's distribution.

    python -m benchmarks.train_students '{"settings": [...], ...}'     # a `Plan`; prints a JSON object

`train_objectives.py` runs it as a separate process. The demo teacher generates completions of the glossary's prompts at
temperature 1: they are samples from the very distribution that the labels describe, which is the best case for
cross-entropy. One pass of the teacher over these texts gives the labels. A prompt is held out with all its completions.

Frozen, the embedding and the head (which share their weights) keep the teacher's values. If they are trained, sampled
labels lose a tenth of the gain: AdamW moves a weight by about the learning rate however small its gradient is, so it pushes
down the head's row of a rarely drawn token at full size, where the full distribution would hold it up.

`StudentTrainer` trains every student, as in `stillhouse distill`. "renormalised-12" is the usual mistake, and exists only
here: the 12 most likely tokens scaled to a sum of 1, and nothing for all others.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from benchmarks.glossary import GLOSSARY
from benchmarks.shared import ROOT
from benchmarks.train_objectives import CROSS_ENTROPY, FULL, Plan, Setting, Student, plan_of
from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.reader import RowGroup
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.head import Parts, split
from stillhouse.models.layout import make_token_batch
from stillhouse.models.load import LanguageModel, choose_device, encode_prompt, load_language_model
from stillhouse.models.sampling import sample_tokens
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.records import SampledLabels
from stillhouse.student.data.completion_example import packed
from stillhouse.student.data.examples import Examples
from stillhouse.student.data.rows import Example, RowLengths
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.stacks import kept_layers
from stillhouse.student.training.objective import Objective
from stillhouse.student.training.trainer import StudentTrainer
from stillhouse.teachers.live import LiveTransformersTeacher

TEACHER = ROOT / "data/models/smollm2-135m-instruct"
DEVICE = choose_device("auto")
AT_ONCE = 64  # the teacher's batch size for reading and generating

WHITE_BOX = Objective(divergence, temperature=1.0, weight=1.0, cross_entropy_weight=0.0)
BLACK_BOX = Objective(None, temperature=1.0, weight=0.0, cross_entropy_weight=1.0)


@dataclass(frozen=True)
class Text:
    """One completion of the teacher."""

    prompt: list[int]
    completion: list[int]
    held_out: bool


def written(teacher: LanguageModel, plan: Plan) -> list[Text]:
    """Return the teacher's completions at temperature 1; completions of the same prompt are adjacent."""
    prompts = list(read_prompts(GLOSSARY))[: plan.prompts]
    asked = [
        (encode_prompt(teacher.tokenizer, prompt.messages), split_of(prompt, GLOSSARY.holdout) == "validation")
        for prompt in prompts
        for _ in range(plan.samples)
    ]
    texts = []
    for first in range(0, len(asked), AT_ONCE):
        part = asked[first : first + AT_ONCE]
        sampling = Sampling(temperature=1.0, top_p=1.0, seeds=range(first, first + len(part)))
        answers = generate(teacher, [ids for ids, _ in part], max_tokens=plan.max_tokens, sampling=sampling)
        texts += [Text(ids, answer, held_out) for (ids, held_out), answer in zip(part, answers, strict=True)]
    return texts


# -------------------------------------------------------------------------------------------------------------- the rows


class MemoryRows:
    """Rows in memory, with the protocol `stillhouse.student.data.rows.Rows`."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.groups = cast(tuple[RowGroup, ...], (OneGroup(first=0, rows=len(examples), nbytes=0),))

    def lengths(self) -> RowLengths:
        tokens = [(len(example.prompt), len(example.completion)) for example in self._examples]
        prompt, completion = np.array(tokens, dtype=np.int32).reshape(-1, 2).T
        return RowLengths(prompt, completion, np.zeros(len(tokens), dtype=np.bool_))

    def example(self, group: int, row: int) -> Example:
        return self._examples[row]


@dataclass(frozen=True)
class OneGroup:
    """The attributes of a row group that an index needs."""

    first: int
    rows: int
    nbytes: int


def renormalised(logits: Tensor, k: int) -> PackedLabels:
    """Return the k most likely tokens, scaled to a sum of 1, and nothing for all others, from (time, vocabulary) logits."""
    values, ids = logits.topk(k, dim=-1)
    return PackedLabels(
        ids.cpu().numpy().astype(np.int32).reshape(-1),
        values.log_softmax(dim=-1).cpu().numpy().reshape(-1),
        np.arange(len(logits) + 1, dtype=np.int64) * k,
        np.full(len(logits), -np.inf, dtype=np.float32),
    )


def labelled(teacher: Parts, texts: Sequence[Text], plan: Plan) -> dict[tuple[str, int], list[Example]]:
    """Return the rows of every way and seed, from one pass of the teacher. Only the draws differ between seeds."""
    ways = sorted({way for setting in plan.settings for way in setting.ways})
    seeds = sorted({seed for setting in plan.settings for seed in setting.seeds})
    rows: dict[tuple[str, int], list[Example]] = {(way, seed): [] for way in ways for seed in seeds}
    for number, text in enumerate(texts):
        logits = logits_along(teacher, [text])
        prompt, completion = (np.array(ids, dtype=np.int32) for ids in (text.prompt, text.completion))
        for way in ways:
            for seed, labels in zip(seeds, labels_of(way, logits, seeds, number), strict=True):
                rows[way, seed].append(Example(prompt, completion, labels))
    return rows


def labels_of(way: str, logits: Tensor, seeds: Sequence[int], number: int) -> Sequence[PackedLabels | None]:
    """Return the labels of completion `number` by seed, from (time, vocabulary) logits; None if the way stores none."""
    kind, _, size = way.rpartition("-")
    if kind == "renormalised":
        return [renormalised(logits, int(size))] * len(seeds)
    if kind != "sampled":
        return [None] * len(seeds)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for seed in seeds]
    shape = (len(logits), int(size))
    uniform = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators]
    drawn = sample_tokens(
        logits, torch.cat(uniform, dim=1)
    )  # (time, seeds * draws): one cumulative distribution for all
    return [packed(SampledLabels.from_draws(part.cpu().numpy())) for part in drawn.split(int(size), dim=1)]


@torch.inference_mode()
def logits_along(parts: Parts, texts: Sequence[Text]) -> Tensor:
    """Return a model's logits that predict the completion tokens: (completion tokens, vocabulary) float32."""
    batch = make_token_batch([text.prompt for text in texts], [text.completion for text in texts], pad_id=0).to(DEVICE)
    return parts.head(parts.hidden(batch.input_ids, batch.labels, attention_mask=batch.attention_mask))


# ---------------------------------------------------------------------------------------------------------- the training


def evenly(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a student of `layers` evenly spaced layers of the teacher."""
    return copy_layers(teacher, kept_layers(teacher.config, layers))


def train(
    teacher: LanguageModel, setting: Setting, way: str, seed: int, rows: Sequence[Example], plan: Plan
) -> tuple[LanguageModel, int]:
    """Train a student; return it and its number of steps."""
    student = LanguageModel(evenly(teacher.model, plan.layers), teacher.tokenizer)
    student.model.get_input_embeddings().requires_grad_(not setting.frozen)  # tied with the head
    live = LiveTransformersTeacher(split(teacher.model), int(teacher.model.config.vocab_size))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = StudentTrainer(
            student,
            BLACK_BOX if way == CROSS_ENTROPY else WHITE_BOX,
            arguments,
            Examples(MemoryRows(rows), max_length=10_000),
            Examples(MemoryRows([]), max_length=10_000),
            teacher=live if way == FULL else None,
        )
        trainer.train()
    del student.model.forward  # restore the model's own forward, which the trainer replaced by the loss
    student.model.eval()
    return student, trainer.state.global_step


def held_out_kl(teacher: Parts, student: Parts, texts: Sequence[Text]) -> float:
    """Return KL(teacher || student) over the whole vocabulary, nats per token."""
    total, tokens = 0.0, 0
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        both = (logits_along(parts, part).log_softmax(dim=-1) for parts in (teacher, student))
        kl = divergence(*both)
        total, tokens = total + float(kl.double().sum()), tokens + len(kl)
    return total / tokens


def main() -> None:
    plan = plan_of(sys.argv[1])
    teacher = load_language_model(TEACHER)
    teacher.model.requires_grad_(False)
    parts = split(teacher.model)
    texts = written(teacher, plan)
    learnt, held_out = ([text for text in texts if text.held_out is kept] for kept in (False, True))
    rows = labelled(parts, learnt, plan)
    students = []
    for setting in plan.settings:
        for seed in setting.seeds:
            for way in setting.ways:
                began = time.perf_counter()
                student, steps = train(teacher, setting, way, seed, rows[way, seed], plan)
                seconds = time.perf_counter() - began
                kl = held_out_kl(parts, split(student.model), held_out)
                students.append(Student(setting.name, way, seed, kl, steps, seconds))
                print(students[-1], file=sys.stderr, flush=True)
    told = {
        "students": [asdict(student) for student in students],
        "untrained": held_out_kl(parts, split(evenly(teacher.model, plan.layers).to(DEVICE)), held_out),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type,
        "rows": len(learnt),
        "tokens": sum(len(text.completion) for text in learnt),
        "held_out_prompts": len(held_out) // plan.samples,
        "held_out_tokens": sum(len(text.completion) for text in held_out),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
