"""Several processes that train one student, started by `accelerate launch` where a recipe says so (`student.launch`).

    check_launch(recipe, student)                              # before anything is trained
    launch(recipe, student, work, ["distill", ...], tell)      # accelerate launch ... -m stillhouse distill RECIPE ...

The launcher is accelerate's own, as a command in a session of its own; what is started is the command that a shell would
give it, with the resolved recipe from a file. All of it ends with the process that called `launch`, however that ends
(children.py). torch's launcher puts each training process into a session of its own, so no signal to a group reaches them
all: that they wait for the end of their standard input is needed wherever the launcher itself is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import RecipeError
from stillhouse.inputs.user_files import Unreadable, decode_text
from stillhouse.processes import ranks
from stillhouse.processes.children import RECIPE, Tell, follow
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LaunchSettings, StudentSettings

_LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch")
_PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")  # distributed types that --multi_gpu starts, with a GPU or without
_OTHERS = ("MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_HPU", "MULTI_NEURON")
_ARGUMENTS: dict[str, tuple[Any, str]] = {  # what accelerate's parser must make of ours -> the mend of what changed it
    "training_script": ("stillhouse", "each must be an option of accelerate launch, with its value after it"),
    "num_machines": (1, "start `accelerate launch ... -m stillhouse distill RECIPE` from a shell on each machine"),
    "mixed_precision": ("no", "set student.train.bf16 or fp16: what a student is stands in its recipe"),
    "dynamo_backend": ("no", "the loss has another shape with every batch, and would be compiled anew for each"),
    "cpu": (False, "set student.train.use_cpu; accelerate starts one process with --cpu"),
    "use_fsdp": (False, "set student.train.fsdp"),
    "use_deepspeed": (False, "shard with student.train.fsdp instead"),
    "use_megatron_lm": (False, "shard with student.train.fsdp instead"),
    "use_parallelism_config": (False, "shard with student.train.fsdp instead"),
    "tpu": (False, "training on TPUs was never tried"),
    "no_python": (False, "Stillhouse sets what is started"),
    "module": (True, "Stillhouse sets what is started"),
}


# --------------------------------------------------------------------------------------------------------------- checking


def check_launch(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a launch that could not be done; in a process that was launched, one that came out as another.

    Raises:
        RecipeError: the config file, the number of processes or an argument is wrong.
    """
    settings = student.launch
    if settings is None:
        return
    if ranks.is_launched():
        if settings.num_processes not in (None, ranks.processes()) and ranks.launched_by_recipe():
            raise RecipeError(
                f"student.launch.num_processes is {settings.num_processes}, and `accelerate launch` started "
                f"{ranks.processes()}: look for what says so in student.launch.config_file and student.launch.arguments"
            )
        return
    command = _accelerate(student, _gpus(recipe, student))
    parsed = _parsed([*command, "-m", "stillhouse"], settings)
    number, file = (
        command[command.index(name) + 1] if name in command else None for name in ("--num_processes", "--config_file")
    )
    ours = {
        "num_processes": (int(number or 0), "set student.launch.num_processes"),
        "config_file": (file, "set student.launch.config_file"),
    }
    for name, (wanted, mend) in {**_ARGUMENTS, **ours}.items():
        found = getattr(parsed, name)
        if found != wanted and (found or wanted):  # a flag that is not given is False or None
            raise RecipeError(
                f"student.launch.arguments is {[*settings.arguments]}, which makes {name} {found!r}: take that away; {mend}"
            )


def _gpus(recipe: Recipe, student: StudentSettings) -> int:
    """How many devices the processes can share out; 0 on the CPU."""
    import torch

    from stillhouse.student.training.arguments import training_arguments

    on_cpu = training_arguments(recipe, student, Path(recipe.students)).use_cpu
    return 0 if on_cpu or not torch.accelerator.is_available() else torch.accelerator.device_count()


def _parsed(command: Sequence[str], settings: LaunchSettings) -> argparse.Namespace:
    """What accelerate itself makes of its arguments."""
    from accelerate.commands.launch import launch_command_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed: argparse.Namespace = launch_command_parser().parse_args([*command])
    except SystemExit:
        reason = said.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2]
        raise RecipeError(
            f"student.launch.arguments is {[*settings.arguments]}, and accelerate does not take that ({reason}): "
            "`accelerate launch --help` lists what it takes"
        ) from None
    return parsed


@dataclass(frozen=True)
class _Config:
    """An accelerate config file, and what it says."""

    file: Path
    said: dict[str, Any]

    def refuse(self, name: str, mend: str) -> RecipeError:
        return RecipeError(f"student.launch.config_file is {self.file}, where {name} is {self.said[name]!r}: {mend}")


def _config(settings: LaunchSettings) -> _Config | None:
    """The recipe's config file, or else the one that `accelerate config` wrote for all; None where there is neither."""
    if settings.config_file is None:
        from accelerate.commands.config.config_args import default_config_file

        found = Path(default_config_file)
        if not found.is_file():
            return None
    else:
        found = Path(settings.config_file)
        if not found.is_file():
            raise RecipeError(
                f"student.launch.config_file is {settings.config_file!r}, which is not there: check the path, or write one "
                f"with `accelerate config --config_file {settings.config_file}`"
            )
    try:
        said = yaml.safe_load(decode_text(found.read_bytes()))
    except (yaml.YAMLError, Unreadable, RecursionError, OSError) as error:
        raise RecipeError(f"student.launch.config_file is {found}, which cannot be read as YAML: {error}") from None
    if not isinstance(said, dict):
        raise RecipeError(
            f"student.launch.config_file is {found}, which is no mapping of settings: write one with `accelerate config "
            f"--config_file {found}`"
        )
    return _Config(found, said)


def _accelerate(student: StudentSettings, gpus: int) -> list[str]:
    """The arguments of `accelerate launch`, up to what it starts.

    Raises:
        RecipeError: the config file or the number of processes is wrong.
    """
    settings = student.launch
    assert settings is not None
    config = _config(settings)
    kind = "NO"
    if config is not None:
        _check_config(config, student)
        kind = config.said.get("distributed_type") or "NO"
        chosen = str(config.said.get("gpu_ids") or "all")
        gpus = gpus if chosen == "all" else min(gpus, len(chosen.split(",")))
    number, where = settings.num_processes, "num_processes"
    if number is None and config is not None:
        number, where = config.said.get("num_processes"), f"config_file is {config.file}, where num_processes"
    if number in (None, -1) and gpus:
        number = gpus
    if not isinstance(number, int) or number < 1:
        raise RecipeError(
            f"student.launch.{where} is {number}, and there is no GPU to count: set student.launch.num_processes to 1 or "
            "more"
        )
    if number > gpus > 0:
        raise RecipeError(
            f"student.launch.{where} is {number}, and here {'is' if gpus == 1 else 'are'} {gpus} GPU"
            f"{'s' if gpus > 1 else ''}, one for each process: set student.launch.num_processes to at most {gpus}"
        )
    return [
        *(["--config_file", str(config.file)] if config else []),
        *(["--multi_gpu"] if number > 1 and kind in _PLAIN else []),  # on the CPU too: else it starts one
        *["--num_processes", str(number), "--num_machines", "1"],
        *["--mixed_precision", "no", "--dynamo_backend", "no"],  # student.train says what they are
        *([] if config and config.said.get("main_process_port") else ["--main_process_port", "0"]),  # a free one
        *map(str, settings.arguments),
    ]


def _check_config(config: _Config, student: StudentSettings) -> None:
    """Refuse a config file that would make another training of it than the recipe describes."""
    said, train = config.said, student.train
    if said.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        raise config.refuse("compute_environment", "only this machine's processes are started, set LOCAL_MACHINE")
    if said.get("num_machines", 1) != 1:
        raise config.refuse("num_machines", f"set it to 1, or {_ARGUMENTS['num_machines'][1]}")
    kind = said.get("distributed_type") or "NO"
    if kind not in (*_PLAIN, *_OTHERS):
        raise config.refuse("distributed_type", "set MULTI_GPU there; student.train.fsdp shards a student")
    precision = said.get("mixed_precision") or "no"
    if precision != "no" and not train.get(precision):
        raise config.refuse(
            "mixed_precision",
            f"set it to 'no' there, or student.train.{precision} to true: a student's key covers that",
        )
    if said.get("dynamo_config"):
        raise config.refuse("dynamo_config", f"take it away; {_ARGUMENTS['dynamo_backend'][1]}")


# -------------------------------------------------------------------------------------------------------------- launching


def launch(
    recipe: Recipe,
    student: StudentSettings,
    work: Path,
    command: Sequence[str],
    tell: Tell,
    progress: Progress,
) -> None:
    """Have a command of ours done by the processes of `student.launch`, and wait for its end.

    Args:
        recipe: resolved; the command gets it as a file.
        student: one of its students.
        work: the folder of its checkpoints, where that file goes.
        command: such as ["distill", "--only", "gold"]; the recipe's file becomes its first argument.
        tell: called with every line of the log that is not progress.
        progress: called with the command's progress.

    Raises:
        RecipeError: as `check_launch` does.
        StillhouseError, TrainingError: as `follow` does.
    """
    command = [command[0], RECIPE, *command[1:]]
    starter = [*_LAUNCHER, *_accelerate(student, _gpus(recipe, student)), "-m", "stillhouse"]
    what = "`accelerate launch`, started as student.launch says,"
    follow(recipe, work / "launch", [*starter, *command], tell, progress, what=what)
