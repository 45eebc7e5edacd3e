"""Train students of one teacher from several initial weights, with equal settings.

    python -m benchmarks.start_students '{"depths": [24, 8], ...}' LABELS     # a `Plan`; prints a JSON object

`start_pruning.py` runs it as a separate process. LABELS is `dataset.root`, the folder of the quickstart's dataset.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from benchmarks.start_pruning import Plan, Student, plan_of
from benchmarks.train_students import WHITE_BOX
from stillhouse.dataset.store import open_dataset
from stillhouse.models.find import teacher_files
from stillhouse.models.head import Parts, split
from stillhouse.models.layout import TokenBatch
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student_init import InitSettings
from stillhouse.student.data.batches import collator, tokens_of
from stillhouse.student.data.examples import Examples, read_examples
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.start.activations import Activations, measure_activations
from stillhouse.student.start.importance import MeasuredTeacher, Removal, block_influence, greedy, leave_one_out
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.rows import measured_rows
from stillhouse.student.start.stacks import Kept, kept_layers, stacks_of
from stillhouse.student.start.widths import cut_widths
from stillhouse.student.training.trainer import StudentTrainer

_BATCH = 16


def train(model: PreTrainedModel, teacher: LanguageModel, rows: Examples, seed: int, plan: Plan) -> None:
    """Train a student in place, like `stillhouse distill`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
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
        student = LanguageModel(model, teacher.tokenizer)
        StudentTrainer(student, WHITE_BOX, arguments, rows, rows).train()
    del model.forward  # restore the model's own forward, which the trainer replaced by the loss
    model.eval()


@torch.inference_mode()
def hidden(parts: Parts, batch: TokenBatch) -> Tensor:
    """Return the hidden states that predict the completion tokens: (completion tokens, width)."""
    return parts.hidden(batch.input_ids, batch.labels, attention_mask=batch.attention_mask)


@torch.inference_mode()
def distance(teacher: Parts, read: Sequence[Tensor], student: Parts, batches: Sequence[TokenBatch]) -> float:
    """Return KL(teacher || student) over the whole vocabulary, nats per token; `read` are the teacher's hidden states."""
    total, tokens = 0.0, 0
    for batch, states in zip(batches, read, strict=True):
        logits = teacher.head(states), student.head(hidden(student, batch))
        kl = divergence(*(one.log_softmax(dim=-1) for one in logits))
        total, tokens = total + float(kl.double().sum()), tokens + len(kl)
    return total / tokens


def megabytes() -> float:
    """Return the peak memory of this process, 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Bench:
    """The teacher, its rows, and the measurements."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self.plan = plan
        files = teacher_files(recipe)
        assert recipe.student is not None
        dataset = open_dataset(Path(recipe.dataset.root) / recipe.dataset.name)
        self.teacher = load_language_model(files.folder, device="cpu")
        self.teacher.model.requires_grad_(False)
        self.parts = split(self.teacher.model)
        lm = self.teacher
        self.rows = read_examples(dataset, "train", lm, soft=True, by_text=False, max_length=1024)
        held = read_examples(dataset, "validation", lm, soft=False, by_text=False, max_length=1024)
        examples = [held[place] for place in range(len(held))]
        collate = collator(lm.pad_id)
        self.held_out = [
            tokens_of(collate(examples[start : start + _BATCH])) for start in range(0, len(examples), _BATCH)
        ]
        self.read = [hidden(self.parts, batch) for batch in self.held_out]
        self.held_out_tokens = sum(len(one.completion) for one in examples)
        init = recipe.student.init.model_copy(update={"rows": plan.rows})
        self.measured = MeasuredTeacher(
            lm.model, measured_rows(dataset, lm, files, recipe.student.model_copy(update={"init": init}))
        )
        self.costs: dict[str, dict[str, float]] = {}
        self.loaded_megabytes = megabytes()

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        self.costs[name] = {"seconds": time.perf_counter() - began, "megabytes": megabytes()}
        return found

    def distance(self, model: PreTrainedModel) -> float:
        return distance(self.parts, self.read, split(model), self.held_out)

    def student(self, name: str, kept: Sequence[int], make: Callable[[], PreTrainedModel]) -> Student:
        """Measure one choice of initial weights, untrained and after training with every seed."""
        model = make()
        untrained = self.distance(model.eval())
        parameters = model.num_parameters()
        trained, seconds = [], 0.0
        for seed in self.plan.seeds:
            model = make()
            model.requires_grad_(True)
            began = time.perf_counter()
            train(model, self.teacher, self.rows, seed, self.plan)
            seconds += time.perf_counter() - began
            trained.append(self.distance(model))
        made = Student(name, tuple(kept), parameters, untrained, tuple(trained), seconds / len(self.plan.seeds))
        print(made, file=sys.stderr, flush=True)
        return made

    def depths(self, choices: dict[str, Callable[[int], Sequence[int]]]) -> list[Student]:
        """Measure every choice at every depth; choices that keep the same layers are trained once."""
        [stack] = stacks_of(self.teacher.model.config)
        made: dict[tuple[int, ...], Student] = {}
        students = []
        for depth in self.plan.depths:
            for name, choose in choices.items():
                kept = tuple(sorted(choose(depth)))
                if kept not in made:
                    made[kept] = self.student(
                        name, kept, lambda kept=kept: copy_layers(self.teacher.model, [Kept(stack, kept)])
                    )
                students.append(Student(**{**asdict(made[kept]), "name": name}))
        return students

    def equal(self, best: Callable[[int], Sequence[int]], activations: Activations) -> list[Student]:
        """Measure the initial weights with about equal parameters."""
        [stack] = stacks_of(self.teacher.model.config)
        students = []
        for text in self.plan.equal:
            init = InitSettings.model_validate({"from": "teacher", **json.loads(text)})
            kept = tuple(sorted(best(init.layers))) if isinstance(init.layers, int) else tuple(range(stack.depth))

            def make(kept: tuple[int, ...] = kept, init: InitSettings = init) -> PreTrainedModel:
                copied = copy_layers(self.teacher.model, [Kept(stack, kept)])
                if init.width is None:
                    return copied
                return cut_widths(copied, init.width, activations, [Kept(stack, kept)])[0]

            students.append(self.student(text, kept, make))
        return students


def main() -> None:
    plan = plan_of(sys.argv[1])
    recipe = load_recipe("flows/recipes/quickstart.yaml", [f"dataset.root={sys.argv[2]}"])
    bench = Bench(recipe, plan)
    measured, config = bench.measured, bench.teacher.model.config
    influence = bench.timed("block influence", lambda: block_influence(measured))["model"]
    activations = bench.timed("activations, for widths", lambda: measure_activations(measured.model, measured.batches))
    alone = bench.timed("leave-one-out", lambda: leave_one_out(measured))["model"]
    remove = len(alone) - min(plan.depths)
    removal = bench.timed(
        f"greedy removal of {remove} layers, after leave-one-out",
        lambda: greedy(measured, "model", remove, Removal(costs=alone)),
    )

    def highest(scores: Sequence[float]) -> Callable[[int], Sequence[int]]:
        return lambda depth: sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))[:depth]

    choices = {
        "even": lambda depth: kept_layers(config, depth)[0].layers,
        "block-influence": highest(influence),
        "leave-one-out": highest(alone),
        "greedy": lambda depth: [one for one in range(len(alone)) if one not in removal.order[: len(alone) - depth]],
    }
    told = {
        "equal": [asdict(one) for one in bench.equal(choices["leave-one-out"], activations)],
        "depths": [asdict(one) for one in bench.depths(choices)],
        "costs": bench.costs,
        "loaded_megabytes": bench.loaded_megabytes,
        "rows": len(bench.rows),
        "held_out": sum(len(batch.input_ids) for batch in bench.held_out),
        "held_out_tokens": bench.held_out_tokens,
        "measured_tokens": sum(int(batch.attention_mask.sum()) for batch in measured.batches),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
