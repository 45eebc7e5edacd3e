"""Distributed training of one student with `accelerate launch`, if the recipe sets `student.launch`.

    check_launch(recipe, student)                                   # before anything is trained
    launch(recipe, student, work, ["distill", ...], log, progress)  # accelerate launch ... -m stillhouse distill RECIPE ...

accelerate's launcher runs as a command in a separate session, and starts the same command that a user would type, with the
resolved recipe from a file. All processes end with the process that called `launch` (processes/supervised.py). torch's
launcher puts each training process into a separate session, so no signal to a group reaches all of them: each training
process also ends when its standard input is closed, which is needed if the launcher itself is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import RecipeError
from stillhouse.inputs.user_files import Unreadable, decode_text
from stillhouse.processes import ranks
from stillhouse.processes.children import RECIPE, LogLine, run_command
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LaunchSettings, StudentSettings

_LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch")
_PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")  # distributed types that --multi_gpu starts, with a GPU or without
_OTHERS = ("MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_HPU", "MULTI_NEURON")
_ARGUMENTS: dict[str, tuple[Any, str]] = {  # what accelerate's parser must find, and the fix if it finds another value
    "training_script": ("stillhouse", "give only options of accelerate launch, each followed by its value"),
    "num_machines": (1, "start `accelerate launch ... -m stillhouse distill RECIPE` from a shell on each machine"),
    "mixed_precision": ("no", "set bf16 or fp16 in student.train instead, which is part of the student's key"),
    "dynamo_backend": (
        "no",
        "leave it out: every batch has another shape, and the loss would be compiled again for each",
    ),
    "cpu": (False, "set student.train.use_cpu instead; with --cpu, accelerate starts only one process"),
    "use_fsdp": (False, "set student.train.fsdp instead"),
    "use_deepspeed": (False, "shard with student.train.fsdp instead"),
    "use_megatron_lm": (False, "shard with student.train.fsdp instead"),
    "use_parallelism_config": (False, "shard with student.train.fsdp instead"),
    "tpu": (False, "leave it out: training on TPUs is untested"),
    "no_python": (False, "leave it out: Stillhouse sets the program to start"),
    "module": (True, "leave it out: Stillhouse sets the program to start"),
}


# ----------------------------------------------------------------------------------------------------------------- checks


def check_launch(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse a launch that cannot work; in a launched process, check the number of processes.

    Raises:
        RecipeError: the config file, the number of processes or an argument is wrong.
    """
    settings = student.launch
    if settings is None:
        return
    if ranks.is_launched():
        if settings.num_processes not in (None, ranks.processes()) and ranks.launched_by_recipe():
            path = student.setting("launch")
            raise RecipeError(
                f"`accelerate launch` started {ranks.processes()} processes",
                setting=f"{path}.num_processes",
                value=settings.num_processes,
                fix=f"find the setting that changes the number in {path}.config_file or {path}.arguments",
            )
        return
    command = _accelerate(student, _gpus(recipe, student))
    parsed = _parsed([*command, "-m", "stillhouse"], student)
    number, file = (
        command[command.index(name) + 1] if name in command else None for name in ("--num_processes", "--config_file")
    )
    expected = {
        "num_processes": (int(number or 0), "set student.launch.num_processes instead"),
        "config_file": (file, "set student.launch.config_file instead"),
    }
    for name, (value, fix) in {**_ARGUMENTS, **expected}.items():
        found = getattr(parsed, name)
        if found != value and (found or value):  # a flag that is not given is False or None
            raise RecipeError(
                f"it sets {name} to {found!r}",
                setting=student.setting("launch.arguments"),
                value=[*settings.arguments],
                fix=f"remove that argument; {_in_recipe(fix, student)}",
            )


def _in_recipe(fix: str, student: StudentSettings) -> str:
    """Return a fix that names a student's settings, for a teacher that is fine-tuned with its settings' own paths."""
    return re.sub(r"student\.((?:launch|train)[.\w]*)", lambda match: student.setting(match[1]), fix)


def _gpus(recipe: Recipe, student: StudentSettings) -> int:
    """Return the number of devices for the processes; 0 on the CPU."""
    import torch

    from stillhouse.student.training.arguments import training_arguments

    on_cpu = training_arguments(recipe, student, Path(recipe.students)).use_cpu
    return 0 if on_cpu or not torch.accelerator.is_available() else torch.accelerator.device_count()


def _parsed(command: Sequence[str], student: StudentSettings) -> argparse.Namespace:
    """Parse arguments with accelerate's own parser.

    Raises:
        RecipeError: accelerate rejects an argument.
    """
    from accelerate.commands.launch import launch_command_parser

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            parsed: argparse.Namespace = launch_command_parser().parse_args([*command])
    except SystemExit:
        reason = output.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2]
        assert student.launch is not None
        raise RecipeError(
            f"accelerate rejects it ({reason})",
            setting=student.setting("launch.arguments"),
            value=[*student.launch.arguments],
            fix="give arguments that `accelerate launch --help` lists",
        ) from None
    return parsed


@dataclass(frozen=True)
class _Config:
    """An accelerate config file and its content."""

    file: Path
    content: dict[str, Any]
    setting: str  # that names the file

    def error(self, name: str, fix: str) -> RecipeError:
        """Return the error of a setting in the file."""
        problem = f"{name} is {self.content[name]!r} in that file"
        return RecipeError(problem, setting=self.setting, value=str(self.file), fix=fix)


def _config(settings: LaunchSettings, setting: str) -> _Config | None:
    """Return the recipe's config file, or else accelerate's default config file; None if neither exists.

    Raises:
        RecipeError: the file does not exist, or is not a YAML mapping; `setting` is the setting that names it.
    """
    if settings.config_file is None:
        from accelerate.commands.config.config_args import default_config_file

        found = Path(default_config_file)
        if not found.is_file():
            return None
    else:
        found = Path(settings.config_file)
        if not found.is_file():
            raise RecipeError(
                "the file does not exist",
                setting=setting,
                value=settings.config_file,
                fix=f"check the path, or write it with `accelerate config --config_file {settings.config_file}`",
            )
    try:
        content = yaml.safe_load(decode_text(found.read_bytes()))
    except (yaml.YAMLError, Unreadable, RecursionError, OSError) as error:
        raise RecipeError(
            f"it cannot be read as YAML: {error}",
            setting=setting,
            value=str(found),
            fix=f"correct it, or write it with `accelerate config --config_file {found}`",
        ) from None
    if not isinstance(content, dict):
        raise RecipeError(
            "it is not a mapping of settings",
            setting=setting,
            value=str(found),
            fix=f"write it with `accelerate config --config_file {found}`",
        )
    return _Config(found, content, setting)


def _accelerate(student: StudentSettings, gpus: int) -> list[str]:
    """Return the arguments of `accelerate launch`, without the program to start.

    Raises:
        RecipeError: the config file or the number of processes is wrong.
    """
    settings = student.launch
    assert settings is not None
    config = _config(settings, student.setting("launch.config_file"))
    kind = "NO"
    if config is not None:
        _check_config(config, student)
        kind = config.content.get("distributed_type") or "NO"
        chosen = str(config.content.get("gpu_ids") or "all")
        gpus = gpus if chosen == "all" else min(gpus, len(chosen.split(",")))
    setting = student.setting("launch.num_processes")
    number = settings.num_processes
    if number is None and config is not None:
        number = config.content.get("num_processes")
    source = f" (num_processes in {config.file})" if config is not None and settings.num_processes is None else ""
    if number in (None, -1) and gpus:
        number = gpus
    if not isinstance(number, int) or number < 1:
        raise RecipeError(
            f"there is no GPU from which to derive the number of processes{source}",
            setting=setting,
            value=number,
            fix=f"set {setting} to 1 or more",
        )
    if number > gpus > 0:
        raise RecipeError(
            f"this machine has {gpus} GPU{'s' if gpus > 1 else ''}, and each process needs one{source}",
            setting=setting,
            value=number,
            fix=f"set {setting} to at most {gpus}",
        )
    return [
        *(["--config_file", str(config.file)] if config else []),
        *(
            ["--multi_gpu"] if number > 1 and kind in _PLAIN else []
        ),  # on the CPU too, where accelerate would else start one process
        *["--num_processes", str(number), "--num_machines", "1"],
        *["--mixed_precision", "no", "--dynamo_backend", "no"],  # student.train sets both
        *([] if config and config.content.get("main_process_port") else ["--main_process_port", "0"]),  # 0: a free port
        *map(str, settings.arguments),
    ]


def _check_config(config: _Config, student: StudentSettings) -> None:
    """Refuse a config file that contradicts the recipe.

    Raises:
        RecipeError: a setting of the file would train another student than the recipe describes.
    """
    content, train = config.content, student.train
    if content.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        raise config.error("compute_environment", "set it to LOCAL_MACHINE: processes are started only on this machine")
    if content.get("num_machines", 1) != 1:
        raise config.error("num_machines", f"set it to 1, or {_ARGUMENTS['num_machines'][1]}")
    kind = content.get("distributed_type") or "NO"
    if kind not in (*_PLAIN, *_OTHERS):
        fsdp = student.setting("train.fsdp")
        raise config.error("distributed_type", f"set it to MULTI_GPU there; to shard the student, set {fsdp}")
    precision = content.get("mixed_precision") or "no"
    if precision != "no" and not train.get(precision):
        setting = student.setting(f"train.{precision}")
        raise config.error(
            "mixed_precision", f"set it to 'no' there, or {setting} to true, which is part of the student's key"
        )
    if content.get("dynamo_config"):
        raise config.error(
            "dynamo_config", "remove it: every batch has another shape, and the loss would be recompiled"
        )


# ----------------------------------------------------------------------------------------------------------------- launch


def launch(
    recipe: Recipe,
    student: StudentSettings,
    work: Path,
    command: Sequence[str],
    log: LogLine,
    progress: Progress,
) -> None:
    """Run a Stillhouse command in the processes of `student.launch`, and wait for its end.

    Args:
        recipe: the resolved recipe, which is written to a file for the command.
        student: one of its students.
        work: the folder of the student's checkpoints, which also gets that file.
        command: such as ["distill", "--only", "gold"]; the recipe's file becomes its first argument.
        log: called with every line of the command's output that is not progress.
        progress: called with the command's progress.

    Raises:
        RecipeError: the config file or the number of processes is wrong.
        StillhouseError: the error that the command reported.
        TrainingError: the command failed without reporting an error.
    """
    command = [command[0], RECIPE, *command[1:]]
    starter = [*_LAUNCHER, *_accelerate(student, _gpus(recipe, student)), "-m", "stillhouse"]
    what = f"`accelerate launch` ({student.setting('launch')})"
    run_command(recipe, work / "launch", [*starter, *command], log, progress, what=what)
