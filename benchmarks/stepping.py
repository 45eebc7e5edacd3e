"""Code shared by the trainings of the speed benchmark: their arguments, their timer, and the JSON line that they print.

Each training is a separate module, run by the Python of its own virtual environment:

    .venv-trl/bin/python -m benchmarks.step_trl '{"way": "trl", "student": "/a/model", ...}'    # a `Task`

So this module uses only the standard library and transformers. All trainings use the same rows in the same order, so that
each step has the same tokens in all of them. The first steps, which allocate memory and load code, are not counted.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


@dataclass(frozen=True)
class Task:
    """One training."""

    way: str
    teacher: str  # model folder
    student: str  # model folder
    dataset: str  # dataset folder; its labels are learnt, and all datasets have the same text
    rows: str  # a JSON file: prompt and completion token ids of every row of its train split, in order
    kl_alone: bool  # only the divergence, without the cross-entropy that a recipe's loss has by default
    batch: int
    warm_up: int  # uncounted steps
    steps: int  # counted steps

    @property
    def arguments(self) -> dict[str, Any]:
        """The `transformers.TrainingArguments` that all trainings share."""
        return {
            "max_steps": self.warm_up + self.steps,
            "per_device_train_batch_size": self.batch,
            "learning_rate": 1e-4,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "eval_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
        }


def task_from_arguments() -> Task:
    return Task(**json.loads(sys.argv[1]))


class StopWatch(TrainerCallback):
    """Records when each step ended, for `tell`."""

    def __init__(self) -> None:
        self.ended: list[float] = []  # wall-clock time at the end of each step
        self.busy: list[float] = []  # processor time at the end of each step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())
        self.busy.append(time.process_time())


def tell(task: Task, watch: StopWatch, loss: float, packages: list[str]) -> None:
    """Print the last line of standard output: time of the counted steps, peak memory, and the mean loss of all steps."""
    assert len(watch.ended) == task.warm_up + task.steps
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    told = {
        "seconds": watch.ended[-1] - watch.ended[task.warm_up - 1],
        "busy_seconds": watch.busy[-1] - watch.busy[task.warm_up - 1],
        "peak_bytes": peak,
        "loss": loss,
        "versions": {package: version(package) for package in packages},
    }
    print(json.dumps(told), flush=True)
