"""Run by torchrun: trains the students of some recipes, one after another, and says which step it is at, and who it is.

torchrun --nproc_per_node 2 -m tests.student.together RECIPE...
"""

import os
import sys
from pathlib import Path

from stillhouse.processes import ranks
from stillhouse.recipe.load import load_recipe
from stillhouse.stages.checks import student_of
from stillhouse.stages.stages import distill_stage, recipe_dataset


def main(files: list[str]) -> None:
    for file in files:
        recipe = load_recipe(file)

        def say(activity: str, done: int, total: int, file: str = file) -> None:
            print(f"{Path(file).stem} {done} {os.getpid()}", flush=True)

        distill_stage(recipe, student_of(recipe), recipe_dataset(recipe), say)
    ranks.end_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
