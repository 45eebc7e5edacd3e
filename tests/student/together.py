"""Run by torchrun: trains the students of some recipes, one after another, and says which step it is at, and who it is.

torchrun --nproc_per_node 2 -m tests.student.together RECIPE...
"""

import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from stillhouse.processes import ranks
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import student_of
from stillhouse.stages.stages import distill_stage, recipe_dataset
from tests.student.cpu_sharding import shard_on_cpu


def main(files: list[str]) -> None:
    shard_on_cpu()
    for file in files:
        recipe = load_recipe(file)

        def say(activity: str, done: int, total: int, file: str = file) -> None:
            print(f"{Path(file).stem} {done} {os.getpid()}", flush=True)

        os.environ.pop("ACCELERATE_USE_FSDP", None)  # which accelerate sets for one student and reads for the next
        student = student_of(recipe)
        result = distill_stage(recipe, student, recipe_dataset(recipe), say)
        if result.trained:  # DistributedDataParallel gives the same losses
            assert AcceleratorState().is_fsdp2 == bool(student.train.get("fsdp"))
    ranks.end_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
