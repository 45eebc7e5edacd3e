"""Two processes on the CPU, by torchrun and by accelerate: the losses and the student of one process."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stillhouse.labelling.engine import label
from stillhouse.prompts.load import split_of
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Message, Prompt
from stillhouse.stages.checks import student_of
from stillhouse.stages.stages import distill_stage, finetune_stage, recipe_dataset
from stillhouse.student.finished.folder import StudentCard, read_card
from tests.conftest import WORDS, make_tiny_model
from tests.encoder_decoders import tiny_t5
from tests.paths import PYTHONPATH, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # torchrun gives each process one

HOLDOUT = 0.2
ONE = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 0.002, "logging_steps": 1}
# Of 21 rows and 5 held-out ones the second of two processes has none in the last batch.
TWO = ONE | {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
# name: what is trained; each in one process with ONE and in two with TWO, so that a step has the same rows
VARIANTS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"train": {"fsdp": True}},
    "accumulated": {"train": {"gradient_accumulation_steps": 2}},
    "checkpointed": {"train": {"gradient_checkpointing": True}, "head_chunk": 3},
    "by-length": {"train": {"train_sampling_strategy": "group_by_length"}},
    "packed": {"packing": True, "max_length": 200},
    "live": {"labels": "live"},
    "adapters": {"lora": {"r": 4, "alpha": 8}},
    "adapters-sharded": {"lora": {"r": 4, "alpha": 8}, "train": {"fsdp": True}},
    "black-box": {"mode": "black-box"},
    "frozen": {"freeze": ["embedding", "head"], "train": {"fsdp": True}},
    "stopped-early": {"early_stopping": {"patience": 1}},
    "one-held-out": {"dataset": "few", "early_stopping": {"patience": 1}},
    "one-held-out-black-box": {"dataset": "few", "early_stopping": {"patience": 1}, "mode": "black-box"},
    "one-held-out-live-sharded": {"dataset": "few", "labels": "live", "train": {"fsdp": True}},
    "encoder-decoder": {"teacher": "t5"},
    "encoder-decoder-live": {"teacher": "t5", "labels": "live", "freeze": ["embedding"]},
    "encoder-decoder-sharded": {"teacher": "t5", "train": {"fsdp": True}},
}
SHARDED = {"fsdp", "frozen", "adapters-sharded", "encoder-decoder-sharded", "one-held-out-live-sharded"}
KILLED = {"ddp-killed": {}, "fsdp-killed": {"fsdp": True}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers and what they labelled, whose rows are not a multiple of the batch; of `few` one row is held out."""
    folder = tmp_path_factory.mktemp("together")
    make_tiny_model(folder / "tiny")
    tiny_t5(folder / "t5", dropout_rate=0.0)  # which two processes would draw otherwise than one
    prompts = [f"Explain {word}. {number}" for number, word in enumerate((WORDS * 3)[:26])]
    held_out = [prompt for prompt in prompts if split_of(Prompt((Message("user", prompt),)), HOLDOUT) == "validation"]
    assert len(held_out) == 5
    few = [prompt for prompt in prompts if prompt not in held_out[1:]][:9]
    assert held_out[0] in few
    for name, chosen in {"words": prompts, "few": few}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in chosen))
    for name in ("tiny", "t5", "few"):
        teacher = "t5" if name == "t5" else "tiny"
        asyncio.run(label(load_recipe(written(folder, "labels", {"teacher": teacher, "dataset": name}))))
    return folder


def written(folder: Path, students: str, student: dict[str, Any], train: dict[str, Any] | None = None) -> Path:
    """A recipe file; its name is that of the folder of its students."""
    student = dict(student)
    teacher = student.pop("teacher", "tiny")
    dataset = student.pop("dataset", teacher)
    recipe = {
        "name": "test",
        "prompts": {"source": str(folder / ("few.jsonl" if dataset == "few" else "words.jsonl")), "holdout": HOLDOUT},
        "teacher": {"kind": "transformers", "model": str(folder / teacher), "options": {"batch_size": 8}},
        "label": {"sampling": {"temperature": 0.9, "max_tokens": 12}, "soft": {"k": 16}, "shard_size": 30},
        "dataset": {"root": str(folder / "labels"), "name": dataset},
        "students": str(folder / students),
        "student": {
            "init": {"from": "teacher", "layers": 1 if teacher == "t5" else 2},
            "loss": {"temperature": 2.0},
            **student,
            "train": {**(train or ONE), **student.get("train", {})},
        },
        "evaluate": {"baselines": []},
    }
    path = folder / f"{students}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def launched(*command: str, **options: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    return subprocess.Popen(
        [*command],
        cwd=options.pop("cwd", ROOT),
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def torchrun(*arguments: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*run, "-m", *arguments]


def done(process: "subprocess.Popen[str]", status: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors[-4000:]
    return output, errors


def trained(recipe: Recipe) -> tuple[StudentCard, dict[str, torch.Tensor]]:
    folder = Path(recipe.students) / recipe.name / student_of(recipe).mode
    card = read_card(folder)
    assert card is not None
    return card, load_file(folder / "model.safetensors")


@dataclass
class Together:
    """What two processes trained."""

    place: Path
    resumed: dict[str, int]  # of the students whose training had been killed: the first step after that


def kill_at_step_5(recipe: Path) -> None:
    """Train a student, and kill the first process at its fifth step; the launcher then ends the other."""
    process = launched(*torchrun("tests.student.together", str(recipe)))
    assert process.stdout is not None
    for line in process.stdout:
        _, step, first = line.split()
        if int(step) == 5:
            os.kill(int(first), signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == 1
    kept = list(recipe.with_suffix("").glob("test/.work-white-box-*/checkpoint-*"))
    assert {folder.name for folder in kept} & {"checkpoint-2", "checkpoint-4"}


@pytest.fixture(scope="module")
def together(place: Path) -> Together:
    """All variants, trained by two processes in one session; first those whose training was killed, which go on."""
    often = TWO | {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
    killed = [written(place, name, {}, often | sharding) for name, sharding in KILLED.items()]
    for recipe in killed:
        kill_at_step_5(recipe)
    unbroken = [written(place, f"un{name}", {}, often | sharding) for name, sharding in KILLED.items()]
    variants = [written(place, f"two-{name}", student, TWO) for name, student in VARIANTS.items()]
    output, _ = done(launched(*torchrun("tests.student.together", *map(str, [*killed, *unbroken, *variants]))))
    lines = [line.split() for line in output.splitlines()]
    return Together(place, {name: int(step) for name, step, _ in reversed(lines) if name in KILLED})


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_give_the_losses_and_the_student_of_one(together: Together, name: str) -> None:
    unsharded = {key: value for key, value in VARIANTS[name].items() if key != "train" or name not in SHARDED}
    alone = load_recipe(written(together.place, f"one-{name}", unsharded))
    distill_stage(alone, student_of(alone), recipe_dataset(alone))
    (one, weights), (two, others) = trained(alone), trained(load_recipe(together.place / f"two-{name}.yaml"))
    assert one.steps == two.steps >= 4
    assert one.parameters == two.parameters
    held_out = [step for step in two.log if step.eval_loss is not None]
    assert len(held_out) >= 2
    for step in held_out:  # NaN would equal nothing, and what is None was not measured
        assert math.isfinite(step.eval_loss or math.nan) and math.isfinite(step.eval_cross_entropy or math.nan)
        assert (step.eval_kl is None) == (VARIANTS[name].get("mode") == "black-box")
    for a, b in zip(one.log, two.log, strict=True):
        assert a.model_dump(exclude_none=True) == pytest.approx(b.model_dump(exclude_none=True), rel=1e-5)
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, others[key], rtol=0, atol=1e-4, msg=lambda said, key=key: f"{key}: {said}")


def test_two_processes_give_the_teacher_along_and_the_student_of_one(place: Path) -> None:
    """The references are the prompts themselves, which the teacher learns to repeat."""
    student = {"labels": "live", "init": {"from": "teacher", "layers": 2, "choose": "even"}}
    recipes = []
    for name, train in (("along-one", ONE), ("along-two", TWO)):
        file = written(place, name, student, train)
        finetune = json.dumps({"along": True, "student_weight": 0.5, "root": str(place / f"{name}-teachers")})
        overrides = ["prompts.reference=prompt", f"teacher.finetune={finetune}", f"dataset.name={name}"]
        recipes.append(load_recipe(file, overrides))
        sets = [word for one in overrides for word in ("--set", one)]
        if train is TWO:
            done(launched(*torchrun("stillhouse", "finetune", str(file), *sets)))
        else:
            finetune_stage(recipes[-1])
    for one, two in zip(
        *([f, trained(r)[1]] for r, f in zip(recipes, map(teacher_of, recipes), strict=True)), strict=True
    ):
        assert one.keys() == two.keys()
        for key, weight in one.items():
            torch.testing.assert_close(weight, two[key], rtol=0, atol=1e-4)


def teacher_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.teacher.labelling_model) / "model.safetensors")


def test_accelerate_launches_the_command_and_one_process_tells(place: Path) -> None:
    recipe = written(place, "accelerated", {"lora": None}, TWO)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    output, errors = done(launched(*launcher, *launch, "-m", "stillhouse", "distill", str(recipe), "--json"))
    (student,) = json.loads(output)["students"]
    assert student["trained"]
    assert errors.count("Training the white-box student: 1 of") == 1
    assert trained(load_recipe(recipe))[0].steps == student["steps"]


@pytest.mark.parametrize("name", KILLED)
def test_two_processes_killed_at_any_step_go_on_to_the_same_student(together: Together, name: str) -> None:
    assert together.resumed[name] > 2  # it went on, and did not begin anew
    unbroken, broken = (load_recipe(together.place / f"{one}.yaml") for one in (f"un{name}", name))
    (one, weights), (two, others) = trained(unbroken), trained(broken)
    assert one.steps == two.steps
    assert all(torch.equal(weight, others[key]) for key, weight in weights.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["label"], "`stillhouse label` was started in 2 processes, and runs only in one"),
        (["distill", "--set", "student.train.fsdp=true"], "student.train.fsdp is true: training runs on a CPU"),
    ],
)
def test_what_is_wrong_is_told_once(place: Path, arguments: list[str], words: str) -> None:
    recipe = written(place, "wrong", {}, TWO)
    _, errors = done(launched(*torchrun("stillhouse", arguments[0], str(recipe), *arguments[1:])), status=1)
    assert errors.count(words) == 1
    assert "[rank" not in errors  # no traceback of ours
